"""The optimiser of the embedded networks: Muon for weight matrices and convolutions, AdamW for the rest.

Muon (Jordan et al. 2024) orthogonalises the momentum of every weight matrix. On the embedded autoencoder 150 steps of it reached what
AdamW needed about 900 for. A convolution counts as a matrix of (out, in * kernel).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spatia_model.devices import computes_bfloat16

ADAMW_SHARE = 0.06  # of the learning rate: AdamW's steps are per entry, Muon's per matrix


class Float32Muon(torch.optim.Muon):
    """`torch.optim.Muon` for matrices on CPUs that only imitate bfloat16, in which the library iterates. The state is the same."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                update = _orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def _orthogonal(x: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> torch.Tensor:
    """Newton-Schulz: x (m, n) with singular values all near 1 (Jordan et al. 2024)."""
    if x.shape[0] > x.shape[1]:
        return _orthogonal(x.T, coefficients, steps, eps).T
    a, b, c = coefficients
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class MuonAdamW:
    """`torch.optim.Muon` over flattened views of a model's weights, `torch.optim.AdamW` over vectors, tables and embeddings.

    Args:
        lr: of Muon; AdamW gets ADAMW_SHARE of it.
        weight_decay: decoupled, of both.
    """

    def __init__(self, model: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.01):
        tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in trained if p.ndim >= 2 and id(p) not in tables and not name.endswith("_table")]
        chosen = {id(p) for p in matrices}
        self._pairs = [(p, nn.Parameter(p.detach().view(len(p), -1))) for p in matrices]  # the view shares its storage
        kind = torch.optim.Muon if all(computes_bfloat16(p.device) for p in matrices) else Float32Muon
        self.muon = kind([flat for _, flat in self._pairs], lr=lr, weight_decay=weight_decay)
        self.adamw = torch.optim.AdamW([p for _, p in trained if id(p) not in chosen], lr=lr * ADAMW_SHARE, betas=betas, weight_decay=0.0)

    def set_lr(self, lr: float) -> None:
        for optimizer, share in ((self.muon, 1.0), (self.adamw, ADAMW_SHARE)):
            for group in optimizer.param_groups:
                group["lr"] = lr * share

    def step(self) -> None:
        for p, flat in self._pairs:
            flat.grad = None if p.grad is None else p.grad.reshape(flat.shape)
        self.muon.step()
        self.adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p, flat in self._pairs:
            p.grad = flat.grad = None
        self.adamw.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


class PlainAdamW(torch.optim.AdamW):
    """AdamW over all of a model's trained parameters, with the same `set_lr`."""

    def __init__(self, model: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.01):
        super().__init__([p for p in model.parameters() if p.requires_grad], lr=lr, betas=betas, weight_decay=weight_decay)

    def set_lr(self, lr: float) -> None:
        for group in self.param_groups:
            group["lr"] = lr


OPTIMIZERS = {"muon": MuonAdamW, "adamw": PlainAdamW}
