"""The mixed optimiser against its own definition, and a Muon run that is stopped and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from spatia_model.devices import computes_bfloat16
from spatia_model.training import optimizer as module
from spatia_model.training.loop import LoopConfig, fit
from spatia_model.training.optimizer import ADAMW_SHARE, Float32Muon, MuonAdamW
from tests.spatia_model.training.toy import ToyStage, config


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv = nn.Conv2d(3, 6, 3)
        self.words = nn.Embedding(7, 4)
        self.out = nn.Linear(6, 4)
        self.scale_shift_table = nn.Parameter(torch.randn(2, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
        y = self.out(torch.tanh(self.conv(x)).flatten(2).transpose(1, 2)) * self.scale_shift_table[0] + self.scale_shift_table[1]
        wanted = torch.randn(y.shape, generator=torch.Generator().manual_seed(9))  # gradients of full rank
        return (y * self.words(word)[:, None] - wanted).square().sum()


def orthogonal(gradient: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz written out, in float64."""
    x = gradient.double() / gradient.double().norm()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


@pytest.mark.parametrize(("pays", "off"), [(True, 0.1), (False, 1e-4)], ids=["bfloat16", "float32"])
def test_a_step_equals_its_definition(pays: bool, off: float, monkeypatch):
    """Matrices and convolutions move by the orthogonalised Nesterov momentum, the rest by AdamW; the frozen stays."""
    monkeypatch.setattr(module, "computes_bfloat16", lambda device: pays)
    model, plain = Mixed(), Mixed()
    optimizer = MuonAdamW(model, lr=0.05, weight_decay=0.0)
    assert isinstance(optimizer.muon, Float32Muon) is not pays
    rest = [plain.conv.bias, plain.words.weight, plain.out.bias, plain.scale_shift_table]
    adamw = torch.optim.AdamW(rest, lr=0.05 * ADAMW_SHARE, betas=(0.9, 0.95), weight_decay=0.0)
    momentum = {"conv": torch.zeros(6, 27), "out": torch.zeros(4, 6)}
    for step in range(3):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        plain.load_state_dict(before)
        x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        for network in (model, plain):
            network.zero_grad()
            network(x, torch.tensor([1, 2])).backward()
        optimizer.step()
        adamw.step()
        with torch.no_grad():
            for name, buffer in momentum.items():
                weight = getattr(plain, name).weight
                gradient = weight.grad.flatten(1)
                buffer.lerp_(gradient, 0.05)
                update = orthogonal(gradient.lerp(buffer, 0.95)).float() * max(1.0, weight.shape[0] / gradient.shape[1]) ** 0.5
                weight -= 0.05 * update.view_as(weight)
        for (name, found), (_, expected) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
            if name in ("conv.weight", "out.weight"):
                moved, meant = found - before[name], expected - before[name]
                assert float((moved - meant).detach().norm() / meant.detach().norm()) < off, name
            else:
                torch.testing.assert_close(found, expected, atol=1e-6, rtol=0, msg=name)
    assert torch.equal(model.frozen.weight, Mixed().frozen.weight)


def test_both_kinds_read_each_others_state_and_decay_alike(monkeypatch):
    """A run begun on one machine goes on on another."""
    moved = []
    for first, then in ((True, False), (False, True)):
        model, x = Mixed(), torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        state = None
        for pays in (first, then):
            monkeypatch.setattr(module, "computes_bfloat16", lambda device, pays=pays: pays)
            optimizer = MuonAdamW(model, lr=0.05, weight_decay=0.5)
            if state is not None:
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            model(x, torch.tensor([1, 2])).backward()
            optimizer.step()
            state = optimizer.state_dict()
        moved.append((model.conv.weight - Mixed().conv.weight).detach())
    assert float((moved[0] - moved[1]).norm() / moved[0].norm()) < 0.1


def test_what_imitates_bfloat16_is_a_cpu_without_it(monkeypatch):
    for supported in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda supported=supported: {"avx512_bf16": supported})
        assert computes_bfloat16("cpu") is supported and computes_bfloat16("cuda:0") is True


def test_rates_follow_set_lr():
    optimizer = MuonAdamW(Mixed(), lr=1.0)
    optimizer.set_lr(0.5)
    assert optimizer.muon.param_groups[0]["lr"] == 0.5 and optimizer.adamw.param_groups[0]["lr"] == 0.5 * ADAMW_SHARE


def test_a_stopped_run_ends_as_one_that_was_not(tmp_path: Path):
    plan = config(optimizer="muon")
    whole = fit(ToyStage(), plan, tmp_path / "whole").state_dict()
    with pytest.raises(KeyboardInterrupt):
        fit(ToyStage(stop_at=17), plan, tmp_path / "cut")
    resumed = fit(ToyStage(), plan, tmp_path / "cut").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path: Path):
    fit(ToyStage(), config(steps=3), tmp_path)
    with pytest.raises(ValueError, match="cannot be resumed"):
        fit(ToyStage(), config(steps=5, optimizer="muon"), tmp_path)
    with pytest.raises(ValueError, match="optimizer must be one of"):
        LoopConfig(optimizer="sgd")


def test_a_fresh_run_can_start_from_an_earlier_one(tmp_path: Path):
    earlier = fit(ToyStage(), config(), tmp_path / "earlier").state_dict()
    plan = config(steps=1, lr=1e-12, start_from=str(tmp_path / "earlier" / "toy.pt"))
    found = fit(ToyStage(), plan, tmp_path / "later").state_dict()
    for name, value in earlier.items():
        if name != "seen":  # the counter goes on
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="could start from"):
        fit(ToyStage(), config(start_from=str(tmp_path / "none.pt")), tmp_path / "never")


def test_weights_of_another_shape_start_as_far_as_they_fit(tmp_path: Path, capsys):
    earlier = fit(ToyStage(), config(), tmp_path / "earlier").state_dict()
    checkpoint = torch.load(tmp_path / "earlier" / "toy.pt", weights_only=True)
    changed, *same = [name for name in earlier if name != "seen"]
    checkpoint["average"][changed] = torch.zeros(3, 3, 3)
    torch.save(checkpoint, tmp_path / "toy.pt")
    plan = config(steps=1, lr=1e-12, start_from=str(tmp_path / "toy.pt"))
    fresh = ToyStage().model.state_dict()[changed].clone()
    found = fit(ToyStage(), plan, tmp_path / "later").state_dict()
    assert f"{len(earlier) - 1} of {len(earlier)} tensors start from" in capsys.readouterr().err
    for name in same:
        torch.testing.assert_close(found[name], earlier[name], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[changed], fresh, atol=1e-6, rtol=0)
    for name in earlier:
        checkpoint["average"][name] = torch.zeros(3, 3, 3)
    torch.save(checkpoint, tmp_path / "toy.pt")
    with pytest.raises(ValueError, match="none has the name and shape"):
        fit(ToyStage(), plan, tmp_path / "never")
