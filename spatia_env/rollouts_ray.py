"""Rollouts over a Ray cluster: one actor per GPU, each with worlds of its own.

An actor writes its episodes into a folder of its node and sends each finished one, in pieces, to the process that holds the dataset. No
shared file system is needed; `spatia` has to be installed on every node.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from spatia_env.agent_file import AgentFile
from spatia_env.recording.face import EnvFace, EpisodeSummary
from spatia_env.recording.folder import DatasetWriter, remove
from spatia_env.rollouts import EnvRequest, Worlds, collect, cpu_count

_PIECE = 8 * 2**20  # bytes
_ANSWER = 5.0  # seconds that an address may take

Piece = tuple[int, str, bytes]  # episode; file within its unit, "" for a unit that is a file, "/" when all is sent; bytes


def import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ValueError('--ray needs the package ray, which is not here; install it: pip install "spatia[ray]"') from error
    return ray


def check_address(address: str) -> None:
    """Raise ValueError when nobody answers at a `host:port` (or ``ray://host:port``); names like "local" and "auto" are not looked at."""
    if address in ("local", "auto"):
        return
    host, mark, port = address.removeprefix("ray://").rpartition(":")
    if not mark or not host or not port.isdigit():
        raise ValueError(f"--ray is {address!r}; give host:port, ray://host:port, auto or local")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"no Ray cluster answers at {address} ({error}); start one (ray start --head), or give local") from error


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster at `address`; a cluster of this machine alone for "local". Raises ValueError when none answers."""
    ray = import_ray()
    check_address(address)
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options |= {"include_dashboard": False, "num_cpus": cpu_count()}
    try:
        with _packages_on_path():
            ray.init(**options)
    except Exception as error:  # a node that starts too slowly is a bare Exception
        reason = " ".join(str(error).split())[:300]
        if address == "local":
            raise ValueError(f"the local Ray cluster did not start ({reason}); free some CPU and memory, or leave --ray out") from error
        raise ValueError(f"no Ray cluster answers at {address} ({reason}); start one (ray start --head), or give local") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _packages_on_path() -> Iterator[None]:
    """Workers of a local cluster find the packages where this process found them, installed or not."""
    import spatia_env

    roots = [
        str(Path(spatia_env.__file__).resolve().parents[1]),
        str(Path(spatia_env.__file__).resolve().parents[1] / "model"),
        os.getcwd(),
    ]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*roots, *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class Worker:
    """What runs on a node: worlds, an agent's class, and a writer into a folder of the node."""

    def __init__(self, request: EnvRequest, agent: AgentFile, writer: DatasetWriter, count: int) -> None:
        self.request, self.agent, self.count = request, agent, count  # all else later: Ray tells errors of calls better than of this one
        self.folder = Path(tempfile.mkdtemp(prefix="spatia-rollout-"))
        self.writer = writer.twin(self.folder / "episodes")
        self.worlds: Worlds | None = None

    def look(self) -> EnvFace:
        """Make the worlds, if they are not there yet, and tell their face."""
        if self.worlds is None:
            first = self.request.make()
            self.agent.try_on(first)
            self.worlds = self.request.worlds(self.count, first, bool(getattr(self.agent.load(), "needs_world", False)))
        return self.worlds.face

    def run(self, indices: list[int], seed: int) -> Iterator[Piece]:
        """Run episodes and yield them piece by piece; the piece named "/" says that an episode is whole."""
        self.writer.open(self.look())
        assert self.worlds is not None
        for summary in collect(self.worlds, self.agent.load(), self.agent.options, self.writer, indices, seed):
            unit = self.writer.unit(summary.index)
            for file in [unit] if unit.is_file() else sorted(path for path in unit.iterdir() if path.is_file()):
                name = "" if file == unit else file.name
                with file.open("rb") as opened:
                    while True:
                        piece = opened.read(_PIECE)
                        yield summary.index, name, piece
                        if len(piece) < _PIECE:
                            break
            yield summary.index, "/", b""
            remove(unit)

    def close(self) -> None:
        self.writer.close()
        if self.worlds is not None:
            self.worlds.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def collect_on_ray(
    ray: Any,
    request: EnvRequest,
    agent: AgentFile,
    writer: DatasetWriter,
    todo: Callable[[EnvFace], list[int]],
    seed: int,
    count: int,
) -> Generator[EpisodeSummary, None, None]:
    """Run episodes on the cluster and yield each as soon as it is in the dataset.

    Args:
        ray: the connected module.
        todo: opens the dataset for the env's face and says which episodes are missing.
        count: worlds per actor.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    most = gpus or int(ray.cluster_resources().get("CPU", 1))
    make = ray.remote(Worker).options(num_cpus=1, num_gpus=1 if gpus else 0)
    arguments = (request, agent, writer.twin(writer.folder), count)
    actors = [make.remote(*arguments)]
    try:
        waiting = deque(todo(_got(ray, actors[0].look.remote())))
        blocks = -(-len(waiting) // count)
        actors += [make.remote(*arguments) for _ in range(min(most, blocks) - 1)]
        running: dict[Any, tuple[Any, list[int]]] = {}  # generator of pieces -> its actor and the episodes it still owes
        idle = list(actors)
        while waiting or running:
            while idle and waiting:
                # Long blocks leave worlds idle less often, short ones spread the last episodes better.
                size = max(count, min(4 * count, len(waiting) // len(actors)))
                block = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                actor = idle.pop()
                running[actor.run.options(num_returns="streaming").remote(block, seed)] = (actor, block)
            if not running:
                raise OSError("every Ray actor has died; the finished episodes are kept, and the same command goes on")
            ready, _ = ray.wait(list(running), num_returns=1)
            for pieces in ready:
                actor, owed = running[pieces]
                try:
                    index, name, content = _got(ray, next(pieces))
                except StopIteration:
                    del running[pieces]
                    idle.append(actor)
                    continue
                except ray.exceptions.RayActorError:
                    del running[pieces]
                    for index in owed:
                        remove(_incoming(writer, index))
                    waiting.extendleft(reversed(owed))  # another actor runs them again
                    continue
                if _arrived(writer, index, name, content):
                    owed.remove(index)
                    yield writer.summaries[index]
    finally:
        for actor in actors:
            with contextlib.suppress(Exception):
                ray.get(actor.close.remote(), timeout=_ANSWER)
            ray.kill(actor)


def _arrived(writer: DatasetWriter, index: int, name: str, content: bytes) -> bool:
    """Put a piece where it belongs; True when the episode is whole and in the dataset."""
    place = _incoming(writer, index)
    if name == "/":
        writer.adopt(index, place)
        return True
    place.parent.mkdir(parents=True, exist_ok=True)
    if name:
        place.mkdir(exist_ok=True)
    with (place / name if name else place).open("ab") as file:
        file.write(content)
    return False


def _incoming(writer: DatasetWriter, index: int) -> Path:
    unit = writer.unit(index)
    return unit.parent / f".incoming-{unit.name}"


def _got(ray: Any, reference: Any) -> Any:
    """The value of a reference; an error of ours as it was raised, not as Ray wraps it."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        raise (cause if isinstance(cause, Exception) else error) from None
