"""An agent as a class in a file: found, loaded, and made once to see that it can be."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class AgentFile:
    """A class in a file, and the options it is made with. A value: it can be sent to another process.

    Args:
        path: the file as the user named it.
        name: the class in it.
        options: keyword arguments beside `env` and `seed`.
        source: the file's bytes, so that a machine without the file can make the agent too.
    """

    path: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    source: bytes = b""

    @staticmethod
    def parse(text: str, options: dict[str, Any] | None = None) -> AgentFile:
        """From ``FILE:Class``. Raises ValueError when there is no such file."""
        path, mark, name = text.rpartition(":")
        if not mark or not path or not name.isidentifier():
            raise ValueError(f"agent is {text!r}; give FILE:Class, such as agents/random_walk.py:RandomWalk")
        file = Path(path).expanduser()
        if not file.is_file() or file.suffix != ".py":
            raise ValueError(f"agent {text!r}: {str(file)!r} is no Python file (looked from {Path.cwd()}); give FILE:Class")
        return AgentFile(path, name, dict(options or {}), file.read_bytes())

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source).hexdigest()

    def load(self) -> type:
        """The class itself. Raises ValueError when the file cannot be run, or has no such class, or it is no agent."""
        module = load_module(self.path, self.source)
        found = getattr(module, self.name, None)
        if not inspect.isclass(found):
            known = [key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__]
            raise ValueError(f"{self.path} has no class {self.name}; its classes are {known}")
        lacking = [method for method in ("reset", "act") if not callable(getattr(found, method, None))]
        if lacking:
            raise ValueError(
                f"{self.path}:{self.name} has no method {' and no method '.join(lacking)}; docs/agents.md says what an agent is"
            )
        return found

    def try_on(self, env: Any, seed: int = 0) -> None:
        """Raise ValueError if the agent cannot even be made (an option it does not know, a policy that is not there).

        An agent with `reseed` is taken to be slow to make, and is not made twice.
        """
        found = self.load()
        if callable(getattr(found, "reseed", None)):
            return
        try:
            found(env, seed=seed, **self.options)
        except (Exception, SystemExit) as error:
            raise ValueError(f"the agent {self.path}:{self.name} cannot be made ({told(error)})") from error


def load_module(path: str, source: bytes | None = None) -> ModuleType:
    """Run a Python file by path, as `python FILE` would find its neighbours. Raises ValueError with what went wrong."""
    file = Path(path).expanduser()
    source = file.read_bytes() if source is None else source
    name = f"spatia_agent_{hashlib.sha256(source).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(file))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(file)
    folder = str(file.parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be run ({type(error).__name__}: {error})") from error
    return module


def find_modules_here() -> None:
    """Let modules of the folder one stands in be imported, as `python FILE` does; the `spatia` command alone does not."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def told(error: BaseException) -> str:
    """An error in a line that any file can hold."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:2000]
    return text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")
