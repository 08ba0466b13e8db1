"""Behaviour cloning: from a recorded Minari dataset to a policy that does as was done."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from tests.agents.loading import load, small_truth

pytest.importorskip("minari")
pytest.importorskip("h5py")


class Signs(gym.Env):
    """Shows a colour; the right motion depends on it: red is 0, green 1, blue 2. With `camera`, it is a turn by -1, 0 or 1 and a text."""

    texts = ("stop", "", "go on")

    def __init__(self, camera: bool = False) -> None:
        self.camera = camera
        self.observation_space = spaces.Box(0, 255, (40, 40, 3), np.uint8)
        self.action_space = spaces.Discrete(3)
        if camera:
            text = spaces.Text(240, min_length=0, charset="abcdefghijklmnopqrstuvwxyz ")
            self.action_space = spaces.Dict({"camera": spaces.Box(-1, 1, (6,), np.float32), "text": text})

    def _show(self) -> np.ndarray:
        self.sign = int(self.np_random.integers(3))
        picture = self.np_random.integers(0, 60, (40, 40, 3)).astype(np.uint8)
        picture[..., self.sign] += 150
        return picture

    def right(self):
        if not self.camera:
            return self.sign
        camera = np.zeros(6, np.float32)
        camera[4] = self.sign - 1
        return {"camera": camera, "text": self.texts[self.sign]}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 8
        return self._show(), {}

    def step(self, action):
        said = action if not self.camera else round(float(action["camera"][4])) + 1
        reward = float(said == self.sign)
        self.left -= 1
        return self._show(), reward, False, self.left == 0, {}


def record(folder, camera: bool, episodes: int = 12) -> None:
    from spatia_env.recording import MinariWriter, RecordEpisodes

    env = RecordEpisodes(Signs(camera), MinariWriter(folder))
    for seed in range(episodes):
        env.reset(seed=seed)
        ended = False
        while not ended:
            *_, ended, _ = env.step(env.unwrapped.right())
    env.close()


@pytest.mark.parametrize("camera", [False, True])
def test_it_learns_what_was_recorded(tmp_path, camera):
    cloning = load("behaviour_cloning")
    record(tmp_path / "signs-v0", camera)
    found = cloning.train(str(tmp_path / "signs-v0"), tmp_path / "policy", epochs=25, batch=16)
    if camera:
        assert found["camera_error"] < 0.5 * found["camera_error_always_the_same"]
    else:
        assert found["wrong"] <= 0.15 < found["wrong_always_the_same"]
    env = Signs(camera)
    agent = cloning.ClonedPolicy(env, 0, str(tmp_path / "policy" / "policy.safetensors"), greedy=True)
    observation, info = env.reset(seed=100)
    agent.reset(observation, info)
    total = said = 0
    for _ in range(8):
        action = agent.act(observation, info)
        said += camera and action["text"] == env.texts[env.sign]
        assert env.action_space.contains(action)
        observation, reward, _, _, info = env.step(action)
        total += reward
    assert total >= 7 and (not camera or said >= 7)
    with pytest.raises(ValueError, match="motions"):
        cloning.ClonedPolicy(Signs(not camera), 0, str(tmp_path / "policy" / "policy.safetensors"))


def test_bad_input_is_said(tmp_path):
    cloning = load("behaviour_cloning")
    with pytest.raises(ValueError, match="cannot be opened"):
        cloning.train(str(tmp_path / "nothing-v0"), tmp_path)
    with pytest.raises(ValueError, match="no policy of this agent"):
        cloning.ClonedPolicy(small_truth(discrete=True), 0, str(tmp_path / "nothing.safetensors"))
    record(tmp_path / "short-v0", False, episodes=1)
    with pytest.raises(ValueError, match="at least 2"):
        cloning.train(str(tmp_path / "short-v0"), tmp_path)
    with pytest.raises(ValueError, match="no picture"):
        cloning.look({"state": np.zeros(3, np.float32)})


def test_observations_become_pictures_and_numbers():
    cloning = load("behaviour_cloning")
    frame = np.zeros((64, 64, 3), np.uint8)
    goal = np.full((64, 64, 3), 9, np.uint8)
    pictures, numbers = cloning.look({"image": frame, "goal_image": goal, "goal": np.array([1, 2], np.float32), "n": 3})
    assert pictures.shape == (6, 32, 32) and pictures[:3].min() == 9 and pictures[3:].max() == 0  # keys in order of the alphabet
    assert numbers.tolist() == [1, 2, 3]
    assert cloning.look(np.concatenate([frame, goal], -1))[0].shape == (6, 32, 32)
