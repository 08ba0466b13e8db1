"""The loop: chance, averages, and above all that a run that was stopped ends as one that was not."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from spatia_model.training.loop import LoopConfig, fit
from tests.spatia_model.training.toy import ToyStage, config

ROOT = Path(__file__).resolve().parents[3]


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    stage = ToyStage()
    before = state(stage.model)
    after = state(fit(stage, config(), tmp_path_factory.mktemp("toy")))
    assert all(not torch.equal(before[name], after[name]) for name in after)
    return after


# -- learning rate ---------------------------------------------------------------------------------------------------


def test_the_rate_warms_up_and_falls_along_a_cosine():
    plan = LoopConfig(steps=110, lr=1.0, final_lr=0.1, warmup=10)
    rates = [plan.lr_at(step) for step in range(115)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1.0) and rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)
    assert rates[35] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)))
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False)) and rates[114] == pytest.approx(0.1)
    assert LoopConfig(steps=5, lr=1.0, warmup=0).lr_at(0) == 1.0
    assert LoopConfig(steps=3, warmup=100, lr=1.0).lr_at(2) == pytest.approx(0.03)  # shorter than its warm-up


@pytest.mark.parametrize("settings", [{"steps": 0}, {"lr": 0.0}, {"ema": 1.0}, {"ema": -0.1}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="steps must be >= 1, lr > 0 and 0 <= ema < 1"):
        LoopConfig(**settings)


# -- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [(1,), (7, 8, 29)])
def test_a_stopped_run_ends_as_an_uninterrupted_one(tmp_path, uninterrupted, stops):
    steps = []
    for stop in stops:
        stage = ToyStage(stop_at=stop)
        with pytest.raises(KeyboardInterrupt):
            fit(stage, config(), tmp_path)
        steps += [step for step, _ in stage.seen]
    last = ToyStage()
    with torch.no_grad():
        for p in last.model.parameters():
            p.zero_()  # where the model begins must not matter any more
    assert_equal(state(fit(last, config(), tmp_path)), uninterrupted)
    assert steps + [step for step, _ in last.seen] == list(range(30))


def test_what_was_done_since_the_last_checkpoint_is_done_again_alike(tmp_path, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        fit(ToyStage(stop_at=10), config(), tmp_path)
    kept = (tmp_path / "toy.pt").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        fit(ToyStage(stop_at=20), config(checkpoint_seconds=1e9), tmp_path)
    assert (tmp_path / "toy.pt").read_bytes() == kept
    assert_equal(state(fit(ToyStage(), config(), tmp_path)), uninterrupted)


def test_a_finished_run_is_only_read(tmp_path, uninterrupted):
    fit(ToyStage(), config(), tmp_path)
    again = ToyStage(stop_at=0)
    assert_equal(state(fit(again, config(), tmp_path)), uninterrupted)
    assert again.seen == []


CHILD = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from spatia_model.training.loop import fit
from tests.spatia_model.training.toy import ToyStage, config
fit(ToyStage(pause=0.02), config(), Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path, uninterrupted):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "model")])}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (tmp_path / "toy.pt").exists() and child.poll() is None:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))  # any moment will do, that is the point
    child.send_signal(signal.SIGKILL)
    child.wait()
    step = torch.load(tmp_path / "toy.pt", weights_only=True)["step"]
    last = ToyStage()
    assert_equal(state(fit(last, config(), tmp_path)), uninterrupted)
    assert [s for s, _ in last.seen] == list(range(step, 30))


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "another stage"])
def test_a_checkpoint_that_cannot_be_used_is_named(tmp_path, damage):
    fit(ToyStage(), config(steps=2), tmp_path)
    path = tmp_path / "toy.pt"
    content = path.read_bytes()
    if damage == "another stage":
        saved = torch.load(path, weights_only=True)
        saved["model"] = {"layers.0.weight": torch.zeros(3, 3)}
        torch.save(saved, path)
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "garbage": b"hello world" * 50}[damage])
    with pytest.raises(ValueError, match="(?s)toy.pt cannot be resumed for stage toy .* remove it to start that stage afresh"):
        fit(ToyStage(), config(), tmp_path)


def test_half_a_checkpoint_is_never_seen(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        fit(ToyStage(stop_at=3), config(), tmp_path)
    kept = (tmp_path / "toy.pt").read_bytes()

    def dies(state, path):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(OSError, match="disk full"):
        fit(ToyStage(), config(), tmp_path)
    assert (tmp_path / "toy.pt").read_bytes() == kept


# -- one step --------------------------------------------------------------------------------------------------------


def test_steps_equal_a_plain_loop(tmp_path):
    """AdamW, clipping and the average written out."""
    plan = config(steps=4, clip_norm=0.5)
    stage, plain = ToyStage(), ToyStage()
    found = fit(stage, plan, tmp_path)
    optimizer = torch.optim.AdamW(plain.model.parameters(), lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay)
    average = state(plain.model)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = plan.lr_at(step)
        rng = np.random.default_rng([11, 0, step])
        loss, _ = plain.loss(rng, torch.Generator().manual_seed(int(rng.integers(2**62))), step)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.square().sum() for p in plain.model.parameters()]).sum().sqrt()
        for p in plain.model.parameters():
            p.grad.mul_(min(1.0, 0.5 / (float(norm) + 1e-6)))
        optimizer.step()
        keep = min(plan.ema, (2 + step) / (11 + step))  # young averages follow faster
        for name, value in plain.model.named_parameters():
            average[name] = keep * average[name] + (1 - keep) * value.detach()
    for name, _ in plain.model.named_parameters():
        torch.testing.assert_close(found.state_dict()[name], average[name], atol=1e-6, rtol=1e-5)
    assert stage.seen == plain.seen


def test_batches_depend_on_seed_and_step_alone(tmp_path):
    stages = [ToyStage() for _ in range(3)]
    for i, (stage, seed) in enumerate(zip(stages, (11, 11, 12), strict=True)):
        fit(stage, config(steps=3, seed=seed), tmp_path / str(i))
    assert stages[0].seen == stages[1].seen != stages[2].seen


def test_one_broken_batch_does_no_harm(tmp_path):
    model = fit(ToyStage(broken=3), config(steps=6), tmp_path)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_validation_sees_the_average_and_leaves_training_alone(tmp_path, uninterrupted, capsys):
    stage = ToyStage()
    found = fit(stage, config(validate_every=10), tmp_path)
    assert_equal(state(found), uninterrupted)
    assert len(stage.validated) == 3 and not any(training for training, _ in stage.validated)
    assert_equal(stage.validated[-1][1], uninterrupted)
    lines = [json.loads(line) for line in (tmp_path / "toy.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "figure": 1.0} for step in (10, 20, 30)]
    assert np.asarray(Image.open(tmp_path / "toy-000020.png")).tolist() == np.full((2, 3, 3), 7).tolist()
    told = capsys.readouterr().err
    assert "toy 10/30 loss " in told and "min left" in told and "toy step 30 validation: figure 1" in told


# -- several processes -----------------------------------------------------------------------------------------------


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(fit(ToyStage(), config(steps=8), Path(folder) / "two").state_dict(), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_learn_as_one_with_both_batches(tmp_path):
    mp.spawn(_worker, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert_equal(first, second)
    one = fit(ToyStage(joint=2), config(steps=8), tmp_path / "one").state_dict()
    alone = fit(ToyStage(joint=1), config(steps=8), tmp_path / "alone").state_dict()
    for name in one.keys() - {"seen"}:
        torch.testing.assert_close(first[name], one[name], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(first[name], alone[name], atol=1e-4), name
    assert [p.name for p in (tmp_path / "two").glob("*.pt")] == ["toy.pt"]
