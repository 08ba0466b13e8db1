"""Where the text makes things go: the way of every entity over the next clip.

A small transformer reads the words and one more token, the entity as it stands before the camera: its colour, size and place, and how it
moved so far. Ours: the release leaves motion to 5 billion parameters; here it is said apart, and drawn (`memory.entities`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from spatia_model.generator.text import numbered, word_ids
from spatia_model.memory.entities import PAST, Entities


@dataclass(frozen=True)
class MotionConfig:
    """`frames` per clip; the network's size; the words it knows."""

    vocabulary: tuple[str, ...] = ()
    frames: int = 8
    width: int = 40
    layers: int = 3
    heads: int = 4
    max_tokens: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocabulary", tuple(self.vocabulary))
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")


class MotionPlanner(nn.Module):
    """Entities and a text to ways.

    What it is told of an entity (`FEATURES`), and what it answers, is in the axes of a level camera where the clip begins: right, down,
    ahead (OpenCV's, without pitch and roll), metres.
    """

    FEATURES = 3 + 1 + 3 + 1 + 3 * len(PAST) + 1  # colour, log size, direction, log distance, past, whether the past was seen

    def __init__(self, config: MotionConfig | None = None):
        super().__init__()
        self.config = config = config or MotionConfig()
        self._ids = numbered(config.vocabulary)
        self.embedding = nn.Embedding(len(config.vocabulary) + 1, config.width, padding_idx=0)
        self.position = nn.Parameter(torch.randn(config.max_tokens, config.width) * 0.2)
        self.entity = nn.Sequential(nn.Linear(self.FEATURES, config.width), nn.GELU(), nn.Linear(config.width, config.width))
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, 2 * config.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(config.width), enable_nested_tensor=False)
        self.way = nn.Linear(config.width, 3 * config.frames)

    def ids(self, text: str) -> torch.Tensor:
        """(max_tokens,) int64 of a text, 0 beyond its words; what is too long loses its beginning, for what happens now comes last."""
        row = word_ids(text, self._ids)[0][-self.config.max_tokens :]
        return F.pad(torch.tensor(row, dtype=torch.long), (0, self.config.max_tokens - len(row)))

    def forward(self, features: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """features (B, FEATURES) and token ids (B, n) to ways (B, frames, 3): metres right, down, ahead from where it is."""
        words = self.embedding(ids) + self.position[: ids.shape[1]]
        x = torch.cat([self.entity(features)[:, None], words], 1)
        ignore = torch.cat([torch.zeros_like(ids[:, :1], dtype=torch.bool), ids == 0], 1)
        return self.way(self.layers(x, src_key_padding_mask=ignore)[:, 0]).unflatten(-1, (self.config.frames, 3))

    @torch.inference_mode()
    def plan(self, entities: Entities, text: str, T_world_camera: torch.Tensor, T_level_world: torch.Tensor | None = None) -> torch.Tensor:
        """(E, frames, 3) float32: metres in the world by which each entity will have moved, frame by frame, as the text has it.

        `T_world_camera` (4, 4): where the camera is when the clip begins; `T_level_world` (4, 4), where +y of the world is not down.
        """
        if not len(entities):
            return torch.zeros(0, self.config.frames, 3)
        turn = torch.eye(4, dtype=torch.float64) if T_level_world is None else T_level_world
        R_level_world = level(turn @ T_world_camera.double()) @ turn[:3, :3]
        places = (entities.centres.double() - T_world_camera[:3, 3]) @ R_level_world.T
        past = entities.past.double() @ R_level_world.T * entities.watched[:, None, None]
        given = features(entities.shades, entities.spreads, places.float(), past.float(), entities.watched)
        way = self(given.to(self.way.weight), self.ids(text).expand(len(entities), -1).to(self.way.weight.device))
        return (way.cpu().double() @ R_level_world).float()


def features(shades: torch.Tensor, spreads: torch.Tensor, places: torch.Tensor, past: torch.Tensor, watched: torch.Tensor) -> torch.Tensor:
    """What the network is told: colours (E, 3) in 0..255, sizes (E,), places (E, 3) and past (E, len(PAST), 3) in level axes, watched (E,).

    Returns (E, FEATURES) float32.
    """
    far = places.norm(dim=-1, keepdim=True).clamp(min=0.1)
    size = spreads.clamp(min=0.01).log()[:, None] - math.log(0.1)
    return torch.cat([shades / 127.5 - 1, size, places / far, far.log(), past.flatten(1) * 4, watched.float()[:, None]], 1)


def level(T_world_camera: torch.Tensor) -> torch.Tensor:
    """(3, 3) float64 R_level_world: rows are right, down and ahead of a level camera with the same heading (4, 4)."""
    down = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    ahead = T_world_camera[:3, 2].double() * (1 - down)
    if ahead.norm() < 1e-3:  # it looks straight up or down: the picture's upper or lower edge is ahead
        ahead = -T_world_camera[:3, 1].double() * (1 - down) * T_world_camera[1, 2].sign()
    ahead = F.normalize(ahead, dim=0)
    return torch.stack([torch.linalg.cross(down, ahead), down, ahead])
