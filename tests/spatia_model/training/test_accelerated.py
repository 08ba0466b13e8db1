"""The trainer: what it learns from, and that nothing is lost whenever it is stopped."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spatia_model.training import checkpoints
from spatia_model.training.checkpoints import Ema
from spatia_model.world_model import WorldModel
from tests.spatia_model.data import fake_clips
from tests.spatia_model.tiny import picture, walk
from tests.spatia_model.training import tiny_run
from tests.spatia_model.training.tiny_run import SETTINGS, train

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return fake_clips.write(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory) -> Path:
    """An uninterrupted run, with one validation at its end."""
    out = tmp_path_factory.mktemp("whole")
    train(clips, out, validation_clips=2)
    return out


def equal(a: Path, b: Path) -> None:
    """Two checkpoints hold the same bits: weights, average, optimiser, random state."""
    for name in ("model.safetensors", "ema.safetensors"):
        x, y = load_file(a / name), load_file(b / name)
        assert x.keys() == y.keys() and len(x) > 10
        assert all(torch.equal(x[k], y[k]) for k in x), name
    x, y = (torch.load(place / "optimizer.bin", weights_only=True)["state"] for place in (a, b))
    assert x.keys() == y.keys() and all(torch.equal(x[i][k], y[i][k]) for i in x for k in ("exp_avg", "exp_avg_sq", "step"))
    states = [torch.load(place / "random_states_0.pkl", weights_only=False) for place in (a, b)]
    assert torch.equal(states[0]["torch_manual_seed"], states[1]["torch_manual_seed"])
    assert json.loads((a / "progress.json").read_text()) == json.loads((b / "progress.json").read_text())


def last(out: Path) -> Path:
    return sorted((out / "checkpoints").glob("step-*"))[-1]


def test_a_run_leaves_what_it_promises(whole):
    assert [path.name for path in sorted((whole / "checkpoints").iterdir())] == ["step-0000004", "step-0000006", "step-0000008"]
    figures = [json.loads(line) for line in (whole / "validation.jsonl").read_text().splitlines()]
    assert [f["step"] for f in figures] == [8] and {"loss", "loss_t0", "loss_t4", "psnr_covered", "psnr_uncovered"} <= figures[0].keys()
    assert list((whole / "strips").glob("*.png")) and list((whole / "logs").rglob("events.out.tfevents*"))
    assert json.loads((whole / "recipe.json").read_text())["lr"] == SETTINGS["lr"]
    world = WorldModel.from_pretrained(whole / "model")
    _, clip = world.advance(world.begin(picture()), walk(0), "a red ball rolls to the left")
    assert clip.frames.shape == (8, 32, 32, 3)


def test_what_is_exported_is_the_average(whole):
    average = load_file(last(whole) / "ema.safetensors")
    exported = load_file(whole / "model" / "weights.safetensors")
    trained = load_file(last(whole) / "model.safetensors")
    assert len(average) == len(exported) == len(trained)
    for name, tensor in zip(trained, [average[k] for k in sorted(average)], strict=False):
        assert exported[name].shape == trained[name].shape and tensor is not None
    shapes = sorted((tuple(v.shape), float(v.double().sum())) for v in average.values())
    assert shapes == sorted((tuple(v.shape), float(v.double().sum())) for v in exported.values())
    assert any(not torch.equal(exported[k], trained[k]) for k in trained)


def test_a_finished_model_is_where_another_run_begins(clips, whole, tmp_path):
    """Fine-tuning: `--model FOLDER` takes what a run, or `spatia train mini`, exported."""
    from accelerate.state import AcceleratorState

    from spatia_model.training.accelerated import fit
    from spatia_model.training.models import load_parts
    from spatia_model.training.stage_control import ControlStage

    folder = whole / "model"
    AcceleratorState._reset_state(True)
    stage = ControlStage(tiny_run.recipe(clips, model=str(folder), steps=1, lr=1e-12))
    before = {name: p.clone() for name, p in load_parts(str(folder)).transformer.named_parameters()}
    for name, p in stage.parts.transformer.named_parameters():
        assert torch.equal(p, before[name].float()) and p.requires_grad
    fit(stage, stage.recipe, tmp_path, cpu=True)
    for name, p in load_parts(str(tmp_path / "model")).transformer.named_parameters():
        assert torch.allclose(p.float(), before[name].float(), atol=1e-6), name
    frames = WorldModel.from_pretrained(tmp_path / "model")
    assert frames.begin(picture(), "", 0).clip_count == 0


def test_tensorboard_holds_the_figures(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(whole / "logs" / "spatia-control"))
    log.Reload()
    tags = log.Tags()
    assert {"train/loss", "train/lr", "train/data_wait_share", "validation/psnr_covered"} <= set(tags["scalars"])
    assert any(tag.startswith("train/loss_t") for tag in tags["scalars"]) and "validation/strip" in tags["images"]


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_a_run_that_is_stopped_ends_with_the_same_bits(clips, whole, tmp_path, stop_at):
    with pytest.raises(KeyboardInterrupt):
        train(clips, tmp_path, stop_at=stop_at)
    assert len(list((tmp_path / "checkpoints").glob("step-*")) if stop_at > 1 else []) == stop_at // 2
    train(clips, tmp_path)
    equal(last(whole), last(tmp_path))
    for name, tensor in load_file(whole / "model" / "weights.safetensors").items():
        assert torch.equal(tensor, load_file(tmp_path / "model" / "weights.safetensors")[name])


def test_a_crash_while_writing_leaves_the_checkpoint_before(clips, whole, tmp_path, monkeypatch):
    real, calls = os.replace, []

    def replace(a, b):
        if "step-" in str(b):
            calls.append(b)
            if len(calls) == 2:
                raise KeyboardInterrupt  # no OSError: nothing of the trainer's may catch it
        return real(a, b)

    monkeypatch.setattr(checkpoints.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        train(clips, tmp_path)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [".step-0000004.partial", "step-0000002"]
    monkeypatch.undo()
    train(clips, tmp_path)
    equal(last(whole), last(tmp_path))
    assert not list((tmp_path / "checkpoints").glob(".step*"))


def test_a_full_disk_costs_a_checkpoint_and_nothing_else(clips, whole, tmp_path, monkeypatch, capsys):
    real = checkpoints.save_file

    def save_file(tensors, path):
        if "step-0000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", save_file)
    train(clips, tmp_path)
    assert "checkpoint of step 4 could not be written" in capsys.readouterr().err
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-0000002", "step-0000006", "step-0000008"]
    equal(last(whole), last(tmp_path))


def test_the_last_checkpoint_must_succeed(clips, tmp_path, monkeypatch):
    def save_file(tensors, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", save_file)
    with pytest.raises(OSError, match="the last checkpoint, of step 2, could not be written .* free some space"):
        train(clips, tmp_path, steps=2)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_checkpoint_that_is_damaged_is_named(clips, tmp_path):
    train(clips, tmp_path, steps=2)
    path = last(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="step-0000002 cannot be resumed .* remove it to go on from the one before"):
        train(clips, tmp_path, steps=4)


def test_another_recipe_in_the_same_folder_is_refused(clips, tmp_path):
    train(clips, tmp_path, steps=1)
    with pytest.raises(ValueError, match=r"holds another run: lr was 0.001, now 0.5.*Take another --out"):
        train(clips, tmp_path, steps=2, lr=0.5)


def test_a_broken_batch_does_not_poison_the_weights(clips, tmp_path):
    from spatia_model.training import flow_module

    real = flow_module.FlowModule.forward
    calls = []

    def forward(self, batch):
        calls.append(1)
        loss, parts = real(self, batch)
        return loss * (float("nan") if len(calls) == 3 else 1.0), parts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_module.FlowModule, "forward", forward)
        train(clips, tmp_path, steps=4)
    assert len(calls) == 8
    for tensor in load_file(last(tmp_path) / "model.safetensors").values():
        assert torch.isfinite(tensor).all()


def test_it_trains_and_validates_in_bfloat16(clips, tmp_path):
    train(clips, tmp_path, steps=1, precision="bf16", validation_clips=1, validate_every=1)
    figures = json.loads((tmp_path / "validation.jsonl").read_text())
    assert np.isfinite(figures["psnr"]) and np.isfinite(figures["loss"])


def test_the_average_follows_the_formula():
    p = torch.nn.Parameter(torch.zeros(3))
    ema, expected = Ema([p], 0.9), torch.zeros(3)
    for step in range(1, 6):
        with torch.no_grad():
            p.fill_(step)
        ema.update([p])
        decay = min(0.9, step / (9 + step)) if step > 1 else 0.0
        expected = decay * expected + (1 - decay) * step
        with ema.applied([p]):
            assert torch.allclose(p, expected)
        assert p[0].item() == step


def environment() -> dict[str, str]:
    path = ":".join([str(ROOT), str(ROOT / "model"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.slow
def test_killed_at_random_points_it_ends_with_the_same_bits(tmp_path, monkeypatch):
    """SIGKILL, which nothing can catch, wherever it falls."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    context = multiprocessing.get_context("forkserver")  # imports once, so that the runs begin at once
    context.set_forkserver_preload(["tests.spatia_model.training.tiny_run"])
    clips, steps = fake_clips.write(tmp_path / "clips"), 8

    def start(name: str):
        run = context.Process(target=tiny_run.go, args=(str(clips), str(tmp_path / name), steps))
        run.start()
        return run

    whole = start("whole")
    whole.join()
    rng, kills = random.Random(2_000_003), []
    for _ in range(3):
        run = start("killed")
        done = {path.name for path in (tmp_path / "killed" / "checkpoints").glob("step-*")}
        while run.is_alive() and {path.name for path in (tmp_path / "killed" / "checkpoints").glob("step-*")} <= done:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        if run.is_alive():
            run.kill()
            run.join()
            kills.append(sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()))
    assert kills
    run = start("killed")
    run.join()
    assert run.exitcode == 0
    equal(last(tmp_path / "whole"), last(tmp_path / "killed"))


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path):
    clips = fake_clips.write(tmp_path / "clips")
    script = ["-m", "tests.spatia_model.training.tiny_run", str(clips)]
    subprocess.run([sys.executable, *script, str(tmp_path / "one"), "3"], cwd=ROOT, env=environment(), check=True, capture_output=True)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run([*launch, *script, str(tmp_path / "two"), "3"], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "on 2 process(es)" in done.stderr
    one, two = (load_file(last(tmp_path / place) / "model.safetensors") for place in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:  # Adam divides by the gradient's size, so the least rounding shows where gradients are next to nothing
        assert np.abs(one[name].numpy() - two[name].numpy()).max() < 2e-4, name
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]  # the other line of the docs
    again = subprocess.run([*launch, *script, str(tmp_path / "two"), "4"], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert again.returncode == 0 and "resumed at step 3" in again.stderr, again.stderr[-3000:]
