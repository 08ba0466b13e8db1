"""Figures that need learned networks: LPIPS and Match Accuracy. Each is None where its package is not installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from spatia_model.perception.catalog import PACKAGES

CONFIDENT = 0.5  # certainty from which a dense match counts

Distance = Callable[[torch.Tensor, torch.Tensor], float]
Certainty = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Tools:
    """What is at hand: `lpips(a, b)` of uint8 (T, H, W, 3), `matcher(a, b)` of uint8 (H, W, 3) giving certainties (h, w) in 0..1."""

    lpips: Distance | None = None
    matcher: Certainty | None = None

    @property
    def absent(self) -> dict[str, str]:
        """Package to install line, of what is not at hand."""
        return {name: PACKAGES[name].install for name, tool in (("lpips", self.lpips), ("romatch", self.matcher)) if tool is None}


def find_tools(device: str = "cpu") -> Tools:
    """The tools whose packages are installed."""
    return Tools(_lpips(device), _roma(device))


def match_accuracy(first: torch.Tensor, last: torch.Tensor, matcher: Certainty) -> float | None:
    """Confident matches of the first frame (H, W, 3) in the last, as a share of its confident matches in itself.

    None where it has none in itself. Dense matches: every pixel has one; those below `CONFIDENT` are dropped.
    """
    own = int((matcher(first, first) >= CONFIDENT).sum())
    return int((matcher(first, last) >= CONFIDENT).sum()) / own if own else None


def _lpips(device: str) -> Distance | None:
    try:
        lpips = importlib.import_module("lpips")
    except ImportError:
        return None
    network: Any = lpips.LPIPS(net="alex", verbose=False).to(device).eval()

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        with torch.inference_mode():
            scaled = [x.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (a, b)]
            return float(torch.cat([network(x, y).flatten() for x, y in zip(scaled[0].split(8), scaled[1].split(8), strict=True)]).mean())

    return distance


def _roma(device: str) -> Certainty | None:
    try:
        romatch = importlib.import_module("romatch")
    except ImportError:
        return None
    network: Any = romatch.roma_outdoor(device=torch.device(device))

    def certainty(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        from PIL import Image

        with torch.inference_mode():
            _, sure = network.match(Image.fromarray(a.cpu().numpy()), Image.fromarray(b.cpu().numpy()), device=torch.device(device))
        return sure[..., : sure.shape[-1] // 2].cpu()  # it matches both ways, side by side: a to b on the left

    return certainty
