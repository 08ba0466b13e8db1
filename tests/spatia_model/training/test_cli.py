"""`spatia train mini`: arguments, and a whole run on two worlds."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spatia_model.training import cli
from spatia_model.training.loop import LoopConfig
from spatia_model.world_model import WorldModel
from tests.spatia_model.tiny import picture, walk


def parse(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(["mini", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seed", -1), "training seeds lie in 0..999,999"),
        (("--seed", 999_999, "--worlds", 2), "--seed 999999 --worlds 2 --watched 2 --views 2 leaves that range"),
        (("--seed", 999_990, "--worlds", 2, "--watched", 4, "--views", 5), "leaves that range"),
        (("--watched", -1), "--watched -1"),
        (("--seed", 1_000_000), "leaves that range"),
        (("--worlds", 0), "--worlds 0"),
        (("--processes", 0), "--processes must be at least 1, got 0"),
        (("--validation-worlds", 0), "--validation-worlds .* at least 1, got 0"),
        (("--clips", 0), "--clips must be at least 1"),
        (("--steps", "vae"), "--steps takes stage=number pairs .* got 'vae'"),
        (("--steps", "vae=many"), "--steps takes stage=number pairs"),
        (("--steps", "vae=0"), "--steps takes a positive whole number for vae, .* got vae=0"),
        (("--steps", "vae=2.5"), "whole number .* got vae=2.5"),
        (("--steps", "vaa=20"), "for vae, redraw, decoder, perception, first, again, denoiser.*got vaa=20"),
        (("--batch", "denoiser=-4"), "got denoiser=-4"),
        (("--lr", "vae=nan"), "--lr takes a positive number .* got vae=nan"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_is_done(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        cli.run(parse("--out", tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write to .*file.*give a folder you may write to"):
        cli.run(parse("--out", tmp_path / "file" / "run"))


def test_a_stage_that_comes_too_early_says_which_one_is_missing(tmp_path):
    with pytest.raises(ValueError, match="holds no clips: make them first"):
        cli.run(parse("--out", tmp_path, "--stage", "vae"))


def test_the_command_line_overrides_a_stage_s_settings():
    args = parse("--out", "x", "--steps", "vae=40, denoiser=7", "--lr", "vae=0.5", "--seed", 9, "--no-bf16")
    default = LoopConfig(steps=5000, lr=1e-3, validate_every=500, warmup=150)
    vae, perception = cli.loop_config(args, "vae", default), cli.loop_config(args, "perception", default)
    assert (vae.steps, vae.lr, vae.validate_every, vae.warmup, vae.seed, vae.bf16) == (40, 0.5, 40, 150, 9, False)
    assert (perception.steps, perception.lr, perception.validate_every, perception.seed) == (5000, 1e-3, 500, 9)


@pytest.mark.slow
def test_from_nothing_to_a_model(tmp_path: Path):
    """Every stage at its real size for two steps, then again: nothing is done twice."""
    threads = torch.get_num_threads()
    steps = ",".join(f"{stage}=2" for stage in cli.TRAINED)
    sizes = ("--worlds", 2, "--validation-worlds", 1, "--pictures", 3, "--clips", 4, "--batch", "perception=2,first=2,again=2,denoiser=2")
    args = parse("--out", tmp_path / "run", *sizes, "--steps", steps, "--threads", threads, "--device", "cpu")
    assert cli.run(args) == 0
    run = tmp_path / "run"
    for stage in cli.TRAINED:
        assert (run / f"{stage}.pt").exists() and (run / f"{stage}.jsonl").read_text().count("\n") == 1
        assert (run / f"{stage}-000002.png").exists()
    model = WorldModel.from_pretrained(run / "model")
    state, clip = model.advance(model.begin(picture(height=128, width=128)), walk(0), "a red ball rolls to the left")
    assert clip.frames.shape == (8, 128, 128, 3) and state.clip_count == 1
    size = sum(path.stat().st_size for path in (run / "model").iterdir())
    assert size < 25 * 2**20
    data = [path for place in ("walks", "windows", "latents") for path in (run / place).iterdir()]
    written = [path.stat().st_mtime_ns for path in data]
    assert cli.run(args) == 0
    assert written == [path.stat().st_mtime_ns for path in data] and len(data) == 4 + 4 + 8  # walked and watched
    assert len(list((run / "views").iterdir())) == 2
    assert (run / "vae.jsonl").read_text().count("\n") == 1


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't tell a process that its parent died")
def test_processes_end_with_the_command_that_started_them(tmp_path):
    launcher = subprocess.Popen([sys.executable, "-m", "tests.spatia_model.training.orphan_run", str(tmp_path)])
    try:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2, seconds=90)
        workers = [int(path.name) for path in tmp_path.iterdir()]
        assert len(workers) == 2 and all(map(running, workers))
    finally:
        launcher.terminate()
        launcher.wait()
    wait_until(lambda: not any(map(running, workers)), seconds=30)
    left = [worker for worker in workers if running(worker)]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left
