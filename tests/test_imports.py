"""Who imports whom, and what an import costs. The rules are those of docs/architecture.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A part of spatia_model may use its own layer and those below.
LAYERS = [
    {"types", "config", "devices", "geometry"},
    {"memory", "perception", "generator", "worlds"},
    {"world_model", "world_steps", "workers", "world_state", "model_folder", "release_world", "release_folder"},
    {"data", "training", "evaluation"},
]
ENV_MAY_USE = {"types", "config", "geometry", "worlds", "memory", "world_model", "world_state"}  # memory: to name its type
HEAVY = {"torch", "open3d", "diffusers", "transformers", "peft", "warp", "scipy", "spatia_model"}
NEVER = {"torchvision", "torchaudio", "timm"}


@dataclass(frozen=True)
class Import:
    source: str  # module that imports, dotted
    target: str  # module imported, dotted
    at_load: bool  # on import, not inside a function
    line: int


def imports_of(path: Path, module: str) -> list[Import]:
    """Every import of a file except those for type checkers only."""
    found: list[Import] = []

    def visit(node: ast.AST, at_load: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for other in child.orelse:
                    visit(other, at_load)
            elif isinstance(child, ast.Import):
                found.extend(Import(module, alias.name, at_load, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                    base = ".".join([*package.split(".")[: len(package.split(".")) - child.level + 1], *([base] if base else [])])
                found.append(Import(module, base, at_load, child.lineno))
                # `from package import module`: whether the name is a module shows on disk
                found.extend(Import(module, f"{base}.{a.name}", at_load, child.lineno) for a in child.names if f"{base}.{a.name}" in FILES)
            else:
                visit(child, at_load and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    visit(ast.parse(path.read_text()), True)
    return found


def files_of(folder: Path, name: str) -> dict[str, Path]:
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = [name, *path.relative_to(folder).with_suffix("").parts]
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


FILES = files_of(ROOT / "spatia_env", "spatia_env") | files_of(ROOT / "model" / "spatia_model", "spatia_model")
IMPORTS = [found for module, path in FILES.items() for found in imports_of(path, module)]


def part(module: str) -> str:
    """`spatia_model.memory.mapping` -> `memory`"""
    return module.split(".")[1] if "." in module else ""


def layer(name: str) -> int:
    for number, names in enumerate(LAYERS):
        if name in names:
            return number
    raise AssertionError(f"spatia_model.{name} is in no layer: add it to LAYERS here and to docs/architecture.md")


def told(found: list[Import]) -> str:
    return "\n".join(f"{FILES[i.source].relative_to(ROOT)}:{i.line} imports {i.target}" for i in found)


def test_the_rules_see_the_packages():
    assert "spatia_env.env" in FILES and "spatia_model.types" in FILES
    assert any(i.source == "spatia_env.inputs" and i.target == "spatia_model.world_model" and not i.at_load for i in IMPORTS)


def test_spatia_model_imports_downwards_only():
    inside = [i for i in IMPORTS if i.source.startswith("spatia_model.") and i.target.startswith("spatia_model.")]
    wrong = [i for i in inside if layer(part(i.source)) < layer(part(i.target))]
    assert not wrong, told(wrong)


def test_spatia_model_knows_no_gymnasium_and_no_env():
    wrong = [i for i in IMPORTS if i.source.startswith("spatia_model") and i.target.split(".")[0] in {"gymnasium", "spatia_env"}]
    assert not wrong, told(wrong)


def test_open3d_loads_inside_functions_only_and_never_for_generator_or_training():
    uses = [i for i in IMPORTS if i.target.split(".")[0] == "open3d"]
    wrong = [i for i in uses if i.at_load or part(i.source) in {"generator", "training"}]
    assert not wrong, told(wrong)


def test_nothing_needs_torchvision_and_its_like():
    wrong = [i for i in IMPORTS if i.target.split(".")[0] in NEVER]
    assert not wrong, told(wrong)


def test_env_uses_the_models_face_only():
    """The commands may reach further: they print what evaluation measures."""
    uses = [i for i in IMPORTS if i.source.startswith("spatia_env") and i.target.startswith("spatia_model.")]
    wrong = [i for i in uses if part(i.target) not in ENV_MAY_USE and not i.source.startswith(("spatia_env.commands", "spatia_env.cli"))]
    assert not wrong, told(wrong)


def test_env_loads_heavy_things_inside_functions_only():
    wrong = [i for i in IMPORTS if i.source.startswith("spatia_env") and i.at_load and i.target.split(".")[0] in HEAVY]
    assert not wrong, told(wrong)


def test_no_import_cycles():
    graph: dict[str, set[str]] = {module: set() for module in FILES}
    for i in IMPORTS:
        if i.at_load and i.target in FILES and not i.source.startswith(i.target + "."):
            graph[i.source].add(i.target)
    state: dict[str, int] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert state.get(module) != 1, "cycle: " + " -> ".join([*trail[trail.index(module) :], module])
        if module not in state:
            state[module] = 1
            for target in sorted(graph[module]):
                visit(target, (*trail, module))
            state[module] = 2

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize("path", sorted((ROOT / "agents").glob("*.py")), ids=lambda path: path.name)
def test_agents_use_public_names_only(path):
    import spatia_env

    assert not (ROOT / "agents" / "__init__.py").exists()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        if isinstance(node, ast.ImportFrom) and node.module == "spatia_env":
            assert set(names) <= set(spatia_env.__all__), names
        else:
            roots = {node.module} if isinstance(node, ast.ImportFrom) else set(names)
            assert not any((root or "").startswith(("spatia_env.", "spatia_model")) for root in roots), roots


def run(code: str) -> str:
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'model'}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_spatia_env_is_light():
    """No torch and no open3d; and little beyond gymnasium, which is what is counted here: seconds depend on the machine."""
    modules = run("import gymnasium, sys; before = set(sys.modules)\nimport spatia_env\nprint(*sorted(set(sys.modules) - before))").split()
    assert "spatia_env" in modules
    assert not {name.split(".")[0] for name in modules} & HEAVY
    assert len(modules) < 20, modules
    assert "Spatia-v0" in run("import gymnasium, spatia_env; print(*gymnasium.registry)").split()


def test_command_line_help_is_light():
    code = (
        "import sys\nfrom spatia_env import cli\ntry:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('\\n', *{name.split('.')[0] for name in sys.modules})"
    )
    assert not set(run(code).splitlines()[-1].split()) & HEAVY


def test_public_names_are_there():
    import spatia_env

    for name in spatia_env.__all__:
        assert getattr(spatia_env, name) is not None
    assert set(spatia_env.__all__) <= set(dir(spatia_env))
    with pytest.raises(AttributeError):
        spatia_env.nothing  # noqa: B018


def test_generator_and_training_import_without_open3d_and_gymnasium():
    code = (
        "import sys\nfor name in ('open3d', 'gymnasium'):\n    sys.modules[name] = None\n"
        "import pkgutil, importlib, spatia_model\n"
        "for package in ('generator', 'training'):\n"
        "    module = importlib.import_module(f'spatia_model.{package}')\n"
        "    for found in pkgutil.walk_packages(module.__path__, module.__name__ + '.'):\n"
        "        importlib.import_module(found.name)\n"
        "print('fine')"
    )
    assert run(code).strip() == "fine"
