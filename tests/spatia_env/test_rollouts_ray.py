"""Rollouts over Ray, as its driver sees it, and what the command says of a cluster that is not there."""

from __future__ import annotations

import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from spatia_env import cli
from spatia_env.agent_file import AgentFile
from spatia_env.recording import EnvFace, LeRobotWriter, MinariWriter
from spatia_env.rollouts import EnvRequest, missing
from tests.spatia_env.datasets import AGENTS, ID, command, minari_contents, run
from tests.spatia_env.fast_env import Walker

pytest.importorskip("minari", reason="minari (extra: rollouts) is not installed")
pytest.importorskip("h5py", reason="h5py (extra: rollouts) is not installed")
pytest.importorskip("pyarrow.parquet", reason="pyarrow (extra: rollouts) is not installed")


class FakeRay:
    """As much of Ray as the driver calls, in this process: actors run when their results are asked for, and some die."""

    class exceptions:
        class RayActorError(Exception): ...

        class RayTaskError(Exception):
            cause: Exception | None = None

    def __init__(self, actors: int, deaths: int = 0) -> None:
        self.actors, self.deaths, self.alive, self.blocks = actors, deaths, 0, []

    def cluster_resources(self) -> dict[str, float]:
        return {"GPU": self.actors, "CPU": 64}

    def remote(self, made: type) -> Any:
        ray = self

        class Call:
            def __init__(self, function: Any) -> None:
                self.function = function

            def options(self, **options: Any) -> Call:
                return self

            def remote(self, *arguments: Any) -> Any:
                found = self.function(*arguments)
                if isinstance(found, Actor):
                    return found
                return ray.pieces(found, arguments) if hasattr(found, "__next__") else lambda: found

        class Actor:
            def __init__(self, *arguments: Any) -> None:
                ray.alive += 1
                self.real = made(*arguments)

            def __getattr__(self, name: str) -> Call:
                return Call(getattr(self.real, name))

        return Call(Actor)

    def pieces(self, found: Any, arguments: tuple[Any, ...]) -> Any:
        self.blocks.append(list(arguments[0]))
        dies = len(self.blocks) <= self.deaths

        def iterate() -> Any:
            for number, piece in enumerate(found):
                if dies and number == 3:  # in the middle of an episode's file
                    raise self.exceptions.RayActorError
                yield lambda piece=piece: piece

        return iterate()

    def wait(self, running: list[Any], num_returns: int) -> Any:
        return running[-1:], running[:-1]

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        return reference()

    def kill(self, actor: Any) -> None:
        self.alive -= 1


@pytest.mark.parametrize("deaths", [0, 2])
@pytest.mark.parametrize("writer_type", [MinariWriter, LeRobotWriter])
def test_episodes_come_whole_from_actors_and_again_from_others_when_one_dies(tmp_path, monkeypatch, writer_type, deaths):
    from spatia_env import rollouts_ray

    monkeypatch.setattr(rollouts_ray, "_PIECE", 1000)
    ray, writer = FakeRay(3, deaths), writer_type(tmp_path / "ray-v0")

    def todo(face: EnvFace) -> list[int]:
        writer.open(face)
        return missing(writer, 7)

    ended = list(rollouts_ray.collect_on_ray(ray, EnvRequest(ID), AgentFile.parse(f"{AGENTS}:Walker"), writer, todo, 5, 2))
    assert sorted(summary.index for summary in ended) == list(range(7)) and ray.alive == 0
    assert len(ray.blocks) == 4 + deaths  # blocks of two
    if writer_type is MinariWriter:
        run(tmp_path / "here", Walker, EnvRequest(ID), 1)
        assert minari_contents(tmp_path / "ray-v0") == minari_contents(tmp_path / "here")
    writer.publish()
    writer.close()
    assert not list((tmp_path / "ray-v0").rglob(".incoming*"))


def test_when_every_actor_dies_the_finished_episodes_stay(tmp_path):
    from spatia_env.rollouts_ray import collect_on_ray

    writer = MinariWriter(tmp_path / "ray-v0")

    def todo(face: EnvFace) -> list[int]:
        writer.open(face)
        return missing(writer, 4)

    with pytest.raises(OSError, match="every Ray actor has died"):
        list(collect_on_ray(FakeRay(2, deaths=9), EnvRequest(ID), AgentFile.parse(f"{AGENTS}:Walker"), writer, todo, 5, 2))
    assert 0 < len(writer.summaries) < 4
    writer.close()


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def test_a_ray_address_that_does_not_answer(tmp_path, capsys):
    pytest.importorskip("ray", reason="ray (extra: ray) is not installed")
    for address, message in ((f"127.0.0.1:{free_port()}", "no Ray cluster answers at"), ("nonsense", "give host:port")):
        assert cli.main(command(tmp_path / "out", "--ray", address)) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_does_not_start_is_told(tmp_path, capsys, monkeypatch):

    def init(**options: Any) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
    for address, message in (("local", "the local Ray cluster did not start (The current"), ("auto", "no Ray cluster answers at auto")):
        assert cli.main(command(tmp_path / "out", "--ray", address)) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
