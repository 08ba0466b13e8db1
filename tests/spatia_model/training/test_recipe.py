"""The recipe: the paper's numbers, the command line made from it, its file, and what is refused."""

from __future__ import annotations

import argparse
import json

import pytest

from spatia_model.training import recipe as recipes
from spatia_model.training import stage_cli
from spatia_model.training.recipe import Recipe


def parse(stage: str, *words: object) -> Recipe:
    return recipes.from_arguments(namespace(stage, *words), stage)


def namespace(stage: str, *words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"spatia train {stage}")
    stage_cli.add_arguments(parser)
    return parser.parse_args(["--out", "x", *map(str, words)])


def test_defaults_are_the_paper_s():
    control, lora = parse("control", "--clips", "c"), parse("lora", "--clips", "c")
    assert (control.trainable, control.steps, control.lr, control.batch) == ("control", 8000, 1e-5, 64)
    assert (lora.trainable, lora.steps, lora.lr, lora.batch, lora.lora_rank) == ("lora", 5000, 1e-4, 64, 64)
    assert control.history_noise == 0.05 and (control.t_mean, control.t_std) == (0.0, 1.0) and control.max_references == 7


def test_the_command_line_overrides_the_file_and_the_file_the_stage(tmp_path):
    first = parse("lora", "--clips", "c", "--lr", 3e-4, "--checkpointing", "--lora-rank", 8)
    recipes.write(first, tmp_path / "recipe.json")
    again = parse("lora", "--config", tmp_path / "recipe.json", "--lora-rank", 16, "--no-checkpointing")
    assert (again.lr, again.lora_rank, again.checkpointing, again.clips) == (3e-4, 16, False, "c")
    with pytest.raises(ValueError, match="is a recipe of stage lora, not control"):
        parse("control", "--config", tmp_path / "recipe.json")


def test_files_that_are_no_recipes_are_named(tmp_path):
    path = tmp_path / "recipe.json"
    for text, message in (("{", "is no recipe"), ("{}", "is no recipe"), ('{"version": 99}', "version 99; this package reads up to 1")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            recipes.read(path)
    path.write_text(json.dumps({"version": 1, "stage": "control", "speed": 3}))
    with pytest.raises(ValueError, match="unknown setting speed"):
        recipes.read(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clips": ""}, "--clips is missing"),
        ({"steps": 0}, "steps = 0: expected a whole number"),
        ({"lr": float("nan")}, "lr = nan: expected a positive"),
        ({"drop_text": 1.5}, "drop_text = 1.5: expected a share"),
        ({"ema": 1.0}, "ema = 1.0"),
        ({"schedule": "linear"}, "expected one of constant, cosine"),
        ({"trainable": "some"}, "expected one of control, lora, all"),
        ({"warmup": -1}, "warmup = -1: expected 0 or more"),
        ({"rollout_frames": "some"}, "expected one of own, true"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"clips": "c", **changes})


def test_learning_rates():
    r = Recipe(clips="c", steps=110, warmup=10, lr=1.0, final_lr=0.1, schedule="cosine")
    assert [r.lr_at(s) for s in (0, 9)] == pytest.approx([0.1, 1.0])
    assert r.lr_at(10) == pytest.approx(1.0) and r.lr_at(60) == pytest.approx(0.55) and r.lr_at(110) == pytest.approx(0.1)
    assert Recipe(clips="c", warmup=10, lr=1.0).lr_at(5000) == 1.0


def test_the_batch_is_shared_by_processes_and_passes():
    r = Recipe(clips="c", batch=64, micro_batch=2)
    assert [r.accumulation(n) for n in (1, 8, 32)] == [32, 4, 1]
    with pytest.raises(ValueError, match="batch 64: no multiple of micro_batch 2 x 3 processes"):
        r.accumulation(3)


def test_a_run_goes_on_with_what_it_was_begun_with():
    from dataclasses import asdict

    before = asdict(Recipe(clips="c", steps=10))
    recipes.check_continuation(before, Recipe(clips="elsewhere/c", steps=20, keep=9), "out")
    with pytest.raises(ValueError, match="out holds another run: seed was 0, now 1"):
        recipes.check_continuation(before, Recipe(clips="c", seed=1), "out")


def test_print_config_prints_the_recipe(capsys):
    assert stage_cli.run(namespace("lora", "--clips", "c", "--lr", 0.5, "--print-config")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["version"] == 1 and told["stage"] == "lora" and told["lr"] == 0.5
