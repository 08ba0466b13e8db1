"""Walks that `spatia train mini --stage data` made, with the map that was built along them: the embedded tier's own training clips.

A clip shows the map as it was before it, gathered over all that came earlier with a perceiver's errors, not the cloud of one candidate
frame. Windows, references and motion are those of `data.latents`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from spatia_model.config import FRAME_RATE, MiniConfig, mini_camera
from spatia_model.data.latents import window_frames
from spatia_model.data.prepare.build import Built, Settings, contents, panel
from spatia_model.data.prepare.footage import BadFootage
from spatia_model.data.prepare.tools import Tools
from spatia_model.data.schema import Clip
from spatia_model.geometry.camera import normalised_intrinsics
from spatia_model.types import Projection


class Walks:
    """A folder with `walks/` and `windows/`."""

    def __init__(self, root: Path, config: MiniConfig | None = None):
        self.root, self.config = root, config or MiniConfig()
        self.files = {path.stem: path for path in sorted((root / "windows").glob("*.safetensors"))}
        if not self.files:
            raise ValueError(f"{root} holds no windows/: give a folder that `spatia train mini --stage data` has made")

    def names(self) -> list[str]:
        return sorted(self.files)

    def build(self, name: str, settings: Settings, tools: Tools) -> Built:
        """All clips of one walk, at most `clips_per_video`.

        Raises:
            BadFootage: a file is missing, not whole, or of other sizes.
        """
        from safetensors import SafetensorError, safe_open

        config, size = self.config, self.config.image_size
        wanted = (size, size, config.history_frames + config.frames_per_clip, config.history_frames)
        if (settings.height, settings.width, settings.frames, settings.preceding) != wanted:
            raise BadFootage(f"walks have windows of {wanted[2]} frames of {size}x{size}, {wanted[3]} of them history: leave the sizes out")
        try:
            with safe_open(self.root / "walks" / f"{name}.safetensors", framework="pt") as file:
                walk = {key: file.get_tensor(key) for key in ("rgb", "depth", "dynamic", "T_world_camera")}
                told = file.metadata()
            with safe_open(self.files[name], framework="pt") as file:
                walk |= {key: file.get_tensor(key) for key in ("projection_rgb", "projection_depth", "references")}
                overlooked = file.metadata().get("overlooked", "1") == "1"  # older walks: always
        except (OSError, SafetensorError) as error:
            raise BadFootage(f"{name}: no whole walk with its window ({error})") from error
        captions = json.loads(told["captions"])
        if tuple(walk["rgb"].shape[1:3]) != (size, size) or len(walk["rgb"]) != len(walk["projection_rgb"]):
            raise BadFootage(
                f"{name}: walk {tuple(walk['rgb'].shape)} and window {tuple(walk['projection_rgb'].shape)} do not belong together"
            )
        out = Built()
        for number in range(min(len(captions), settings.clips_per_video)):
            prompt = told.get("prompt", "")
            _add(out, name, number, captions[number], prompt, walk, number == 0 and overlooked, config, settings, tools)
        return out


def _add(
    out: Built,
    name: str,
    number: int,
    caption: str,
    prompt: str,
    walk: dict[str, torch.Tensor],
    overlooked: bool,
    config: MiniConfig,
    settings: Settings,
    tools: Tools,
) -> None:
    rows = window_frames(number, config)
    depth = walk["projection_depth"][rows].float()
    projection = Projection(walk["projection_rgb"][rows], depth, depth > 0, (depth > 0).int() - 1)
    moving = walk["dynamic"][rows].float()
    ids = [i for i in walk["references"][number].tolist() if i >= 0][: settings.references]
    frames, references = walk["rgb"][rows], walk["rgb"][ids]
    known: dict[str, Any] = contents(
        settings,
        tools,
        frames,
        references,
        projection,
        moving,
        walk["depth"][rows].float(),
        torch.zeros_like(moving) if overlooked else moving,
    )
    clip: dict[str, Any] = {
        "key": f"{name}-{number:05d}",
        "video": name,
        "number": number,
        "caption": caption,
        "prompt": prompt,
        "preceding": settings.preceding,
        "fps": float(FRAME_RATE),
        "height": settings.height,
        "width": settings.width,
        "frame_numbers": tuple(rows.tolist()),
        "candidate_frames": tuple(sorted(set(ids))),
        "cloud_frame": -1,  # the map is of all frames before
        "T_world_camera": walk["T_world_camera"][rows],
        "intrinsics": torch.tensor(normalised_intrinsics(mini_camera(config)), dtype=torch.float64).repeat(len(rows), 1),
        "reference_frames": tuple(ids),
        "reference_poses": walk["T_world_camera"][ids],
        "reference_iou": torch.ones(len(ids)),  # not kept with walks
        "provenance": {"source": "walks", "seed": int(name), "licence": "Apache-2.0"},
    }
    if tools.text is not None:
        clip["context"] = tools.rows(caption)
    out.clips.append(Clip(**clip, **known))
    if len(out.panels) < 2:
        out.panels.append(panel(out.clips[-1], frames, projection, walk["rgb"][rows[0]], references, moving))
