"""The memory's side of a walk: what the map would have shown before each clip, and which frames to refer to.

Beside each walk file lies one with `projection_rgb` (N, H, W, 3) uint8, `projection_depth` (N, H, W) float16 (0 where
the map knows nothing) and `references` (clips, K) int32 frame numbers, -1 for none. Frame 0 shows the map made of
frame 0 itself; the frames of clip c show the map as it was before clip c, as in the world loop. Metadata: `overlooked`, "0"
where the first picture's movers were kept out of the map, "1" where they were taken for static.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open

from spatia_model.config import MiniConfig, mini_camera
from spatia_model.data.procedural import ClipFolder, run_jobs, write_atomic
from spatia_model.memory.mapping import MappingConfig, map_clip
from spatia_model.memory.point_memory import PointMemory
from spatia_model.memory.references import KeyframeBank, retrieve, visible_surface
from spatia_model.types import Perception, Projection

OVERLOOKED = 0.15  # of walks: perception knows by their looks what may move in a first picture, and is not always right


def add_memory(path: Path, out: Path, config: MiniConfig) -> None:
    """Run the map along one walk, with depth and masks as imperfect as a perceiver's, and write what it showed."""
    with safe_open(path, framework="pt") as file:
        rgb, depth = file.get_tensor("rgb"), file.get_tensor("depth").float()
        dynamic, poses = file.get_tensor("dynamic").float(), file.get_tensor("T_world_camera")
        seed = int(file.metadata()["seed"])
    rng = np.random.default_rng([seed, 2])
    camera, step_frames = mini_camera(config), config.frames_per_clip
    clips = (len(rgb) - 1) // step_frames
    mapping = MappingConfig(tracking="path")
    noise_level, forget = float(rng.uniform(0.0, 0.02)), float(rng.choice([0.0, 0.0, 0.15, 0.3]))
    shown_rgb, shown_depth = torch.zeros_like(rgb), torch.zeros(depth.shape, dtype=torch.float16)
    references = torch.full((clips, config.max_references), -1, dtype=torch.int32)

    def perceived(frames: slice, blind: bool = False) -> Perception:
        """Depth with smooth errors; of a first picture, what moves may be overlooked."""
        part = depth[frames]
        field = torch.from_numpy(rng.normal(0, noise_level, (len(part), 1, 6, 6)).astype(np.float32))
        error = F.interpolate(field, size=part.shape[1:], mode="bicubic", align_corners=False)[:, 0]
        moving = torch.zeros_like(part) if blind else dynamic[frames]
        return Perception(part * error.exp(), torch.full_like(part, 0.9), moving)

    def fuse(memory: PointMemory, frames: slice, projection: Projection, step: int, blind: bool = False) -> PointMemory:
        return map_clip(memory, rgb[frames], poses[frames], camera, perceived(frames, blind), projection, step, mapping)[0]

    start = slice(0, 1)
    empty = PointMemory.empty(config.voxel_size)
    overlooked = bool(np.random.default_rng([seed, 3]).random() < OVERLOOKED)  # then the map has to get rid of them
    memory = fuse(empty, start, empty.project(poses[start], camera), 0, blind=overlooked)
    first = memory.project(poses[start], camera)
    shown_rgb[:1], shown_depth[:1] = first.rgb, first.depth.half()
    bank = KeyframeBank().add(rgb[0], poses[0], visible_surface(memory, first))
    frame_of = [0]  # keyframe id to frame number
    for clip in range(clips):
        if clip and rng.random() < forget:  # more of the unknown, for training what is not remembered
            last = slice(clip * step_frames, clip * step_frames + 1)
            memory = fuse(empty, last, empty.project(poses[last], camera), clip)
        frames = slice(1 + clip * step_frames, 1 + (clip + 1) * step_frames)
        projection = memory.project(poses[frames], camera)
        shown_rgb[frames], shown_depth[frames] = projection.rgb, projection.depth.half()
        ids = retrieve(bank, visible_surface(memory, projection), config.max_references, config.reference_threshold)
        references[clip, : len(ids)] = torch.tensor([frame_of[i] for i in ids], dtype=torch.int32)
        memory = fuse(memory, frames, projection, clip + 1)
        last = frames.stop - 1
        seen = visible_surface(memory, memory.project(poses[last : last + 1], camera))
        bank = bank.add(rgb[last], poses[last], seen)
        frame_of.append(last)
    tensors = {"projection_rgb": shown_rgb, "projection_depth": shown_depth, "references": references}
    write_atomic(out, tensors, {"seed": str(seed), "overlooked": str(int(overlooked))})


def _add(args: tuple[Path, Path, MiniConfig]) -> None:
    torch.set_num_threads(1)
    path, out, config = args
    if not out.exists():
        add_memory(path, out, config)


def make_windows(walks: Path, out: Path, config: MiniConfig | None = None, processes: int = 1) -> None:
    """`add_memory` for every walk that has none yet."""
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(path, out / path.name, config or MiniConfig()) for path in sorted(walks.glob("*.safetensors"))]
    run_jobs(_add, [job for job in jobs if not job[1].exists()], processes, f"memories in {out.name}")


class Walk:
    """One walk with its memory, read by slices."""

    def __init__(self, walk, memory):
        self._walk, self._memory = walk, memory
        self.frames = walk.get_slice("rgb").get_shape()[0]
        described = walk.metadata()
        self.captions: list[str] = json.loads(described["captions"])
        self.prompt: str = described.get("prompt", "")
        self.overlooked = memory.metadata().get("overlooked") != "0"  # files of before this was told: they were

    def rgb(self, a: int, b: int) -> torch.Tensor:
        return self._walk.get_slice("rgb")[a:b]

    def depth(self, a: int, b: int) -> torch.Tensor:
        return self._walk.get_slice("depth")[a:b].float()

    def dynamic(self, a: int, b: int) -> torch.Tensor:
        return self._walk.get_slice("dynamic")[a:b]

    def poses(self, a: int, b: int) -> torch.Tensor:
        return self._walk.get_slice("T_world_camera")[a:b]

    def references(self, clip: int) -> list[int]:
        return [i for i in self._memory.get_slice("references")[clip].tolist() if i >= 0]

    def projection(self, a: int, b: int) -> Projection:
        depth = self._memory.get_slice("projection_depth")[a:b].float()
        mask = depth > 0
        return Projection(self._memory.get_slice("projection_rgb")[a:b], depth, mask, mask.int() - 1)


class WindowFolder:
    """Walks that have their memory file."""

    def __init__(self, walks: Path, windows: Path):
        self.walks = ClipFolder(walks)
        self.windows = ClipFolder(windows)

    def __len__(self) -> int:
        return len(self.windows)

    def open(self, index: int) -> Walk:
        name = self.windows.files[index].name
        position = next((i for i, path in enumerate(self.walks.files) if path.name == name), None)
        if position is None:
            raise ValueError(
                f"{self.windows.directory / name} belongs to a walk that {self.walks.directory} lacks: remove it or make the walk"
            )
        return Walk(self.walks.open(position), self.windows.open(index))

    def pick(self, rng: np.random.Generator) -> Walk:
        return self.open(int(rng.integers(len(self.windows))))
