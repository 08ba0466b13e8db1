"""The documents hold what they promise: links lead somewhere, commands parse, no figure is left open."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from spatia_env import cli

ROOT = Path(__file__).resolve().parents[1]
CARD = ROOT / "model" / "spatia_model" / "pretrained" / "spatia-mini" / "README.md"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), CARD]
WEIGHTS = (CARD.parent / "config.json").exists()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PLACEHOLDER = re.compile(r"\{\{\w*\}\}")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def links(text: str) -> list[str]:
    """Relative targets, without anchors."""
    found = [target.partition("#")[0] for target in LINK.findall(FENCE.sub("", text))]
    return [target for target in found if target and "://" not in target and not target.startswith("mailto:")]


def commands(text: str) -> list[str]:
    """Lines of fenced blocks that call `spatia`."""
    lines = [line.strip() for _, block in FENCE.findall(text) for line in block.splitlines()]
    return [line for line in lines if line.startswith("spatia ")]


COMMANDS = [(named(path), line) for path in DOCUMENTS for line in commands(path.read_text())]
INLINE = [
    (named(path), code)
    for path in DOCUMENTS
    for code in re.findall(r"`(spatia [^`]+)`", FENCE.sub("", path.read_text()))
    if not re.search(r"\bCOMMAND\b", code)
]


def parse(line: str) -> argparse.Namespace:
    """The command line as the real parser reads it; nothing is run."""
    words = shlex.split(line, comments=True)[1:]
    return cli._parser(cli._chosen(words)).parse_args(words)


def test_the_checks_see_the_documents():
    assert len(DOCUMENTS) >= 6
    assert len(COMMANDS) >= 8
    readme = (ROOT / "README.md").read_text()
    assert "docs/media/demo.gif" in links(readme) and "docs/architecture.md" in links(readme)
    assert links("[a](b.md#c) ![d](e.png) [f](https://g.h) [i](#j)\n```\n[k](l)\n```\n") == ["b.md", "e.png"]
    assert commands("spatia no\n```bash\nspatia doctor --json\nmake demo\n```\n") == ["spatia doctor --json"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_relative_links_lead_somewhere(path):
    missing = [target for target in links(path.read_text()) if not (path.parent / target).exists()]
    if not WEIGHTS:  # the pictures are drawn by the trained model
        missing = [target for target in missing if not target.startswith("docs/media/")]
    assert not missing


@pytest.mark.parametrize(("path", "line"), COMMANDS)
def test_commands_shown_are_commands_that_exist(path, line):
    try:
        args = parse(line)
    except SystemExit as stopped:
        pytest.fail(f"{path}: `{line}` is refused (exit status {stopped.code})")
    assert callable(args.run)


@pytest.mark.parametrize(("path", "line"), INLINE)
def test_commands_in_sentences_name_real_options(path, line):
    """These may leave arguments out; what they do give must exist."""
    words = shlex.split(line)[1:]
    chosen = cli._chosen(words)
    assert chosen or words[0] in {name.split()[0] for name in cli.COMMANDS}, f"{path}: `{line}`"
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    if options:
        parser = cli._parser(chosen)
        known = help_of(parser, chosen)
        assert all(option in known for option in options), f"{path}: `{line}`"


def help_of(parser: argparse.ArgumentParser, chosen: str) -> str:
    for word in chosen.split():
        actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        parser = actions[0].choices[word]
    return parser.format_help()


def test_a_wrong_command_is_noticed():
    with pytest.raises(SystemExit):
        parse("spatia doctor --no-such-option")
    with pytest.raises(SystemExit):
        parse("spatia nonsense")


@pytest.mark.skipif(not WEIGHTS, reason="without the embedded weights there are no figures yet")
@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_no_figure_is_left_open(path):
    assert not PLACEHOLDER.findall(path.read_text())
