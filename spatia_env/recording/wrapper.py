"""Recording as a wrapper: every episode of an env goes into a dataset while it happens."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from spatia_env.recording.face import EnvFace
from spatia_env.recording.folder import DatasetWriter, EpisodeSink


class RecordEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """Write every episode of `env` with `writer`.

    An episode is in the dataset once it has ended. `reset` and `close` close one that has not, as truncated; `close` also brings the
    dataset's index up to date. A folder that holds episodes is continued after them.

    Args:
        env: any env whose spaces the writer's format can hold.
        writer: a `MinariWriter` or `LeRobotWriter`.
        task: a sentence that says what is asked of the agent, for datasets with language.

    Raises:
        ValueError: the writer's folder or format does not fit (see `DatasetWriter`).
    """

    def __init__(self, env: gym.Env[Any, Any], writer: DatasetWriter, task: str = "") -> None:
        super().__init__(env)
        self.writer, self._task = writer, task
        self._sink: EpisodeSink | None = None
        writer.open(EnvFace.of(env, task))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        self._close_episode()
        self.writer.open(EnvFace.of(self.env, self._task))  # after close()
        self._sink = self.writer.begin(self.writer.next_index, seed, observation, info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if self._sink is not None:
            self._sink.add(action, observation, float(reward), terminated, truncated, info)
            if terminated or truncated:
                self._close_episode()
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        self._close_episode()
        if self.writer.face is not None:
            self.writer.publish()
            self.writer.close()
        super().close()

    def _close_episode(self) -> None:
        if self._sink is not None:
            sink, self._sink = self._sink, None
            if sink.summary.steps:
                sink.finish()
            else:
                sink.discard()  # reset twice: nothing has happened
