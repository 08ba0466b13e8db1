"""`spatia generate`: a long video with memory along a path that a person chose."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from spatia_env.actions import TEXT_CHARSET, check_text
from spatia_env.commands import common

if TYPE_CHECKING:
    import torch

    from spatia_model.types import Camera

_MAX_PROMPT = 2000  # characters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="the first picture; its middle square is used")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "--motion",
        help="what the camera does: forward, back, strafe left/right, up, down (metres); "
        "left, right, look up/down, roll left/right (degrees); wait (clips)",
    )
    way.add_argument(
        "--path",
        metavar="W2C",
        help="world-to-camera file: one JSON list (3x4 or 4x4, OpenCV axes) per line, the first line is the picture's pose",
    )
    parser.add_argument(
        "--intrinsics", metavar="FILE", help="'fx fy cx cy' of the whole picture, normalised by width, height, width, height"
    )
    parser.add_argument("--prompt", default="", help="a sentence, or a file with one line for all clips or one line per clip")
    parser.add_argument("--out", default="outputs/generate", help="folder for the results (default: %(default)s)")
    parser.add_argument("--fps", type=float, default=None, help="frames per second of the video (default: the model's)")
    parser.add_argument(
        "--memory", choices=("on", "off"), default="on", help="off: neither projection nor references, to compare (default: %(default)s)"
    )
    common.add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    import torch

    from spatia_env import images, paths
    from spatia_env.video import VideoWriter

    folder = common.writable_folder(args.out)
    if args.fps is not None and not 0 < args.fps <= 240:
        raise ValueError(f"--fps is {args.fps:g}; give a number above 0, at most 240")
    prompts = [_clean(line) for line in paths.read_prompts(args.prompt)]
    picture = images.open_image(args.image)
    whole = paths.read_w2c(args.path) if args.path else None
    intrinsics = paths.read_intrinsics(args.intrinsics) if args.intrinsics else None
    world = common.load_world(args.model, args.device)
    fps = args.fps or float(_frame_rate())
    camera = square_camera(intrinsics, picture.size, world.config.image_size) if intrinsics else None
    frame = torch.from_numpy(images.load_image(picture, world.config.image_size))

    per_clip = world.config.frames_per_clip
    path = motion_or_file_path(args.motion, whole, per_clip)
    clips = paths.whole_clips(path, per_clip)
    prompt, texts = clip_texts(prompts, len(clips))
    common.say(f"{len(path)} frames in {len(clips)} clips of {per_clip}")

    state = world.begin(frame, prompt=prompt, seed=args.seed, camera=camera)
    coverage: list[float] = []
    with VideoWriter(folder / "video.mp4", fps) as video:
        video.add(frame.numpy())

        def write(view: common.ClipView) -> None:
            coverage.append(view.coverage)
            for shown in view.frames[: len(path) - view.index * per_clip]:
                video.add(shown)

        state = common.walk(world, state, clips, texts, memory=args.memory == "on", on_clip=write, label="generating")
    state.memory.save_ply(folder / "memory.ply")
    common.write_w2c(folder / "w2c.txt", np.concatenate([np.eye(4)[None], path.numpy()]))
    figures: dict[str, Any] = {
        "image": args.image,
        "model": str(args.model),
        "seed": args.seed,
        "memory": args.memory,
        "prompt": prompt,
        "frames": len(path) + 1,
        "clips": len(clips),
        "fps": fps,
        "coverage": [round(value, 4) for value in coverage],
        "memory_points": len(state.memory),
        "files": {name: str(folder / name) for name in ("video.mp4", "memory.ply", "w2c.txt", "figures.json")},
    }
    common.write_json(folder / "figures.json", figures)
    print(
        json.dumps(figures)
        if args.json
        else f"{folder / 'video.mp4'}: {figures['frames']} frames; {figures['memory_points']} points in memory.ply"
    )
    return 0


def motion_or_file_path(motion: str | None, whole: torch.Tensor | None, frames_per_clip: int) -> torch.Tensor:
    """The new frames' poses (N, 4, 4), with the picture's own pose as the identity."""
    import torch

    from spatia_env import paths
    from spatia_model.geometry import se3

    if whole is not None:
        return se3.inverse(whole[:1]) @ whole[1:]
    return paths.motion_path(str(motion), torch.eye(4, dtype=torch.float64), frames_per_clip)


def clip_texts(prompts: list[str], clips: int) -> tuple[str, list[str]]:
    """The world's prompt and one text per clip. One line is the prompt; several are one per clip, the last one goes on."""
    if len(prompts) == 1:
        return prompts[0], [""] * clips
    if len(prompts) > clips:
        common.say(f"the prompt has {len(prompts)} lines for {clips} clips; the last {len(prompts) - clips} are not used")
    return "", [prompts[min(index, len(prompts) - 1)] for index in range(clips)]


def square_camera(intrinsics: tuple[float, float, float, float], size: tuple[int, int], image_size: int) -> Camera:
    """The camera of a picture's middle square, from the normalised intrinsics of the whole picture of `size` (width, height)."""
    from spatia_model.geometry.camera import camera_from_normalised

    fx, fy, cx, cy = intrinsics
    width, height = size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = (fx * width / side, fy * height / side, (cx * width - left) / side, (cy * height - top) / side)
    return camera_from_normalised(square, image_size, image_size)


def _clean(line: str) -> str:
    """A prompt the model can read: letters of other scripts are an error, stray symbols become spaces."""
    kept = "".join(character if character in TEXT_CHARSET or character.isalpha() else " " for character in line)
    return check_text(" ".join(kept.split()), _MAX_PROMPT, "the prompt")


def _frame_rate() -> float:
    from spatia_model.config import FRAME_RATE

    return FRAME_RATE
