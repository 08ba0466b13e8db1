"""The optimiser of the embedded networks: Muon for weight matrices and convolutions, AdamW for the rest.

Muon (Jordan et al. 2024) orthogonalises the momentum of every weight matrix. On the embedded autoencoder 150 steps of it reached what
AdamW needed about 900 for. A convolution counts as a matrix of (out, in * kernel).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

ADAMW_SHARE = 0.06  # of the learning rate: AdamW's steps are per entry, Muon's per matrix


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
        self.muon = torch.optim.Muon([flat for _, flat in self._pairs], lr=lr, weight_decay=weight_decay)
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
