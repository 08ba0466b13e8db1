"""A stand-in for `WorldModel` that needs no weights: a panorama that scrolls with the camera, with noise from the state's generator.

It keeps the contract (states are values, every draw comes from the state) so that the env's own promises can be tested.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from spatia_model.generator.text import CompactTextConfig, CompactTextEncoder
from spatia_model.geometry.camera import camera_from_fov
from spatia_model.memory.point_memory import PointMemory
from spatia_model.types import Camera, Clip, Perception, Projection, WorldState

UNDERFOOT = torch.tensor([0.0, 1.5, 0.0])  # metres: its points lie where nobody bumps into them
KNOWN_WORDS = {"a", "red", "ball", "rolls", "to", "the", "left", "sunny", "kitchen"}


@dataclass(frozen=True)
class FakeConfig:
    image_size: int = 24
    frames_per_clip: int = 8
    max_references: int = 3


def reading(world: Any, most: int) -> Any:
    """The world, given a text encoder that reads so many words."""
    encoder = CompactTextEncoder(CompactTextConfig(tuple(sorted(KNOWN_WORDS)), width=8, layers=1, heads=2, max_tokens=most))
    world.generator = SimpleNamespace(text=encoder)
    return world


class FakeWorld:
    """`begin` and `advance` of a `WorldModel`, in a millisecond."""

    def __init__(self, image_size: int = 24) -> None:
        self.config = FakeConfig(image_size)
        self.advanced = 0
        self.fail_next = False

    def unknown_words(self, text: str) -> list[str]:
        return [word for word in text.lower().split() if word not in KNOWN_WORDS]

    def begin(self, image: torch.Tensor, prompt: str = "", seed: int = 0, camera: Camera | None = None) -> WorldState:
        size = self.config.image_size
        assert image.shape == (size, size, 3) and image.dtype == torch.uint8
        generator = torch.Generator().manual_seed(seed)
        memory = PointMemory.empty(0.05).fuse(
            torch.rand(50, 3, generator=generator) + UNDERFOOT, image.reshape(-1, 3)[:50], torch.ones(50), 0
        )
        frames = image[None].clone()
        return WorldState(
            camera=camera or camera_from_fov(1.3, size, size),
            memory=memory,
            keyframes=cast(Any, None),
            frames=frames,
            frames_dynamic=torch.zeros(1, size, size),
            frames_projection=_nothing(1, size),
            T_world_camera=torch.eye(4, dtype=torch.float64)[None],
            prompt=prompt,
            clip_count=0,
            frame_count=1,
            rng_state=generator.get_state(),
        )

    def advance(self, state: WorldState, path: torch.Tensor, text: str = "", memory: bool = True) -> tuple[WorldState, Clip]:
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("the fake world was told to fail")
        self.advanced += 1
        size, frame_count = self.config.image_size, len(path)
        generator = torch.Generator()
        generator.set_state(state.rng_state)
        noise = torch.randint(0, 8, (frame_count, size, size, 3), generator=generator)
        shift = zlib.crc32(text.encode()) % 17 + (path[:, :3, 3].sum(1) * 10 + path[:, 0, 2] * 20).round().long()
        still = state.frames[-1].long()
        frames = torch.stack([(still.roll(int(s), 1) + n) % 256 for s, n in zip(shift, noise, strict=True)]).to(torch.uint8)
        points = torch.rand(20, 3, generator=generator) + path[-1, :3, 3].float() + UNDERFOOT
        cloud = state.memory.fuse(points, frames[-1].reshape(-1, 3)[:20], torch.ones(20), state.clip_count + 1)
        clip = Clip(
            frames=frames,
            T_world_camera=path,
            camera=state.camera,
            projection=_nothing(frame_count, size),
            perception=Perception(
                torch.ones(frame_count, size, size), torch.ones(frame_count, size, size), torch.zeros(frame_count, size, size)
            ),
            references=(state.clip_count,) if memory else (),
            text=text,
        )
        after = replace(
            state,
            memory=cloud,
            frames=frames[-1:],
            T_world_camera=path[-1:],
            clip_count=state.clip_count + 1,
            frame_count=state.frame_count + frame_count,
            rng_state=generator.get_state(),
        )
        return after, clip


def _nothing(frames: int, size: int) -> Projection:
    return Projection(
        rgb=torch.zeros(frames, size, size, 3, dtype=torch.uint8),
        depth=torch.zeros(frames, size, size),
        mask=torch.zeros(frames, size, size, dtype=torch.bool),
        index=torch.full((frames, size, size), -1, dtype=torch.int32),
    )


def save_fake_state(state: WorldState, folder: Path) -> None:
    """Stands in for `spatia_model.world_state.save_state`."""
    folder.mkdir(parents=True)
    state.memory.save_ply(folder / "memory.ply")
    rest = {name: getattr(state, name).tolist() for name in ("frames", "T_world_camera", "rng_state")}
    rest |= {"prompt": state.prompt, "clip_count": state.clip_count, "frame_count": state.frame_count}
    (folder / "state.json").write_text(json.dumps(rest))


def load_fake_state(folder: Path) -> WorldState:
    rest = json.loads((folder / "state.json").read_text())
    frames = torch.tensor(rest["frames"], dtype=torch.uint8)
    size = frames.shape[1]
    return WorldState(
        camera=camera_from_fov(1.3, size, size),
        memory=PointMemory.load_ply(folder / "memory.ply"),
        keyframes=cast(Any, None),
        frames=frames,
        frames_dynamic=torch.zeros(1, size, size),
        frames_projection=_nothing(1, size),
        T_world_camera=torch.tensor(rest["T_world_camera"], dtype=torch.float64),
        prompt=rest["prompt"],
        clip_count=rest["clip_count"],
        frame_count=rest["frame_count"],
        rng_state=torch.tensor(rest["rng_state"], dtype=torch.uint8),
    )
