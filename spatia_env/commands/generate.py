"""`spatia generate`: a long video with memory along a path that a person chose. Takes the release's input files as they are."""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spatia_env.actions import TEXT_CHARSET, check_text
from spatia_env.commands import common

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from spatia_model.perception.user_masks import UserMasks
    from spatia_model.types import Camera

_MAX_PROMPT = 2000  # characters
_SQUARE = 0.1  # relative difference from which pixels that are not square are worth a word
_NARROW = 45.0  # degrees across the frame
_JUMP = 0.5, 20.0  # metres and degrees between two frames from which a path jumps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "image",
        metavar="IMAGE",
        help="the first picture, of which the middle in the model's format is used; or a folder with img.jpg and, where they are there, "
        "w2c.txt, intrinsics.txt, prompt.txt and masks",
    )
    way = parser.add_mutually_exclusive_group()
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
        "--path-rate",
        type=float,
        metavar="FPS",
        help="poses per second of that file; it is walked at this speed whatever the model's frame rate (default: one pose per frame)",
    )
    parser.add_argument("--max-frames", type=int, metavar="N", help="use the first N poses of the path (default: all)")
    parser.add_argument(
        "--intrinsics", metavar="FILE", help="'fx fy cx cy' of the whole picture, normalised by width, height, width, height"
    )
    parser.add_argument("--prompt", help="a sentence, or a file with one line for all clips or one line per clip")
    parser.add_argument(
        "--masks",
        nargs="+",
        metavar="FILE",
        help="what moves, by your own judgement, which wins over the model's: binary pictures, a folder of them, or one .npy [N, H, W]; "
        "foreground = moving. One mask is the picture's; else one per pose of the path",
    )
    parser.add_argument("--shared-masks", action="store_true", help="the union of the masks holds for every frame")
    parser.add_argument(
        "--perception",
        metavar="NAME",
        help="geometry and masks from large models in place of the model's own: release, paper or today (see docs/perception.md)",
    )
    parser.add_argument("--out", default="outputs/generate", help="folder for the results (default: %(default)s)")
    parser.add_argument("--fps", type=float, default=None, help="frames per second of the video (default: the model's)")
    parser.add_argument(
        "--memory", choices=("on", "off"), default="on", help="off: neither projection nor references, to compare (default: %(default)s)"
    )
    common.add_model_arguments(parser)


@dataclass(frozen=True)
class Asked:
    """The inputs, read and checked as far as that goes without a model."""

    image: str
    picture: Image.Image
    whole: torch.Tensor | None  # (N, 4, 4) T_world_camera of the file, None for a motion
    intrinsics: tuple[float, float, float, float] | None
    prompts: list[str]
    masks: torch.Tensor | None  # (N, H, W) bool, at their own size


def run(args: argparse.Namespace) -> int:
    import torch

    from spatia_env import paths
    from spatia_env.inputs import check_read_whole

    folder = common.writable_folder(args.out)
    asked = read_inputs(args)
    world = common.load_world(args.model, args.device)
    if args.perception:
        world = with_perception(world, args.perception, args.device)
    config, shape = world.config, frame_shape(world.config)
    rate = frame_rate(config)
    prompts = asked.prompts if reads_any_text(config) else [clean(line) for line in asked.prompts]
    tell_unknown_words(world, prompts)
    for line in prompts:
        check_read_whole(world, "the prompt", line)
    camera = cropped_camera(asked.intrinsics, asked.picture.size, shape) if asked.intrinsics else None
    frame = torch.from_numpy(cropped_picture(asked.picture, shape))
    if not reads_any_text(config):
        tell_limits(camera, asked.masks is not None)

    whole, rows = asked.whole, None
    if whole is not None and args.path_rate:
        whole, rows = paths.resample(whole, args.path_rate, rate)
    path = new_poses(args.motion, whole, config)
    tell_jumps(path)
    clips = paths.split_clips(path, config)
    prompt, texts = clip_texts(prompts, len(clips))
    if asked.masks is not None:
        from spatia_model.perception.user_masks import MaskedWorld

        world = MaskedWorld(world, frame_masks(asked, args.shared_masks, 1 + len(path), rows, shape))
    common.say(f"{len(path)} frames in {len(clips)} clips of {len(clips[0])}")

    state = world.begin(frame, prompt=prompt, seed=args.seed, camera=camera)
    figures: dict[str, Any] = {
        "image": asked.image,
        "model": str(args.model),
        "seed": args.seed,
        "memory": args.memory,
        "prompt": prompt,
        "texts": texts,
        "masks": 0 if asked.masks is None else len(asked.masks),
        "frames": len(path) + 1,
        "clips": len(clips),
        "fps": args.fps or rate,
    }
    results = Results(folder, figures, np.concatenate([np.eye(4)[None], path.numpy()]))
    results.write(world, state, clips, texts, frame.numpy(), memory=args.memory == "on")
    if args.json:
        print(json.dumps(figures))
    else:
        print(f"{folder / 'video.mp4'}: {figures['frames']} frames; {figures['memory_points']} points in memory.ply")
    return 0


class Results:
    """The files of one walk. The video appears under its name when it is whole; an interrupted walk leaves what was walked."""

    def __init__(self, folder: Path, figures: dict[str, Any], T_world_camera: np.ndarray):
        self.folder, self.figures, self.path = folder, figures, T_world_camera

    def write(self, world: Any, state: Any, clips: list[torch.Tensor], texts: list[str], picture: np.ndarray, memory: bool) -> None:
        """Walk, and write video.mp4, memory.ply, w2c.txt and figures.json. KeyboardInterrupt passes on after writing."""
        from spatia_env.video import VideoWriter

        partial = self.folder / "video.partial.mp4"
        coverage: list[float] = []
        stopped: BaseException | None = None
        count, latest = 0, state
        # The 5B's video is one long decode of all clips, the picture's own frame included; others' clips are put in a row.
        whole = world.video() if hasattr(world, "video") else None
        self.figures["decoded"] = "clip by clip" if whole is None else "once"
        with self._removed_on_error(partial), VideoWriter(partial, self.figures["fps"]) as video:

            def write(frames: np.ndarray) -> None:
                nonlocal count
                for frame in frames[: len(self.path) - count]:  # what fills up the last clip is left out
                    video.add(frame)
                    count += 1

            def keep(view: common.ClipView) -> None:
                nonlocal latest
                coverage.append(view.coverage)
                write(view.frames if whole is None else whole.add(view.clip).numpy())
                latest = view.state

            if whole is None:
                write(picture[None])

            try:
                common.walk(world, state, clips, texts, memory=memory, on_clip=keep, label="generating")
            except KeyboardInterrupt as interrupt:
                stopped = interrupt
                if not count:
                    write(picture[None])
        os.replace(partial, self.folder / "video.mp4")
        latest.memory.save_ply(self.folder / "memory.ply")
        common.write_w2c(self.folder / "w2c.txt", self.path[:count])
        self.figures |= {"coverage": [round(value, 4) for value in coverage], "memory_points": len(latest.memory)}
        if stopped is not None:
            self.figures |= {"interrupted": True, "frames": count, "clips": len(coverage)}
        self.figures["files"] = {name: str(self.folder / name) for name in ("video.mp4", "memory.ply", "w2c.txt", "figures.json")}
        common.write_json(self.folder / "figures.json", self.figures)
        if stopped is not None:
            common.say(f"stopped after {count} of {len(self.path)} frames; what there is lies in {self.folder}")
            raise stopped

    @staticmethod
    @contextlib.contextmanager
    def _removed_on_error(path: Path) -> Iterator[None]:
        try:
            yield
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def read_inputs(args: argparse.Namespace) -> Asked:
    """Read every file that the arguments name. ValueError names the first that is no good, before any weights are loaded."""
    from spatia_env import images, paths
    from spatia_env.inputs import Case, find_case

    if args.fps is not None and not 0 < args.fps <= 240:
        raise ValueError(f"--fps is {args.fps:g}; give a number above 0, at most 240")
    if args.path_rate is not None and not 0 < args.path_rate <= 1000:
        raise ValueError(f"--path-rate is {args.path_rate:g}; give poses per second, above 0 and at most 1000")
    if args.max_frames is not None and args.max_frames < 2:
        raise ValueError(f"--max-frames is {args.max_frames}; give at least 2, the picture's pose and one more")
    given = Path(args.image).expanduser()
    case = find_case(given) if given.is_dir() else Case(given)
    way = args.path or (None if args.motion else case.path)
    if not way and not args.motion:
        raise ValueError('say where the camera goes: --motion "forward 1, left 45" or --path w2c.txt')
    if args.path_rate and not way:
        raise ValueError("--path-rate is about a path file; a motion has its own pace")
    camera = args.intrinsics or case.intrinsics
    prompt = args.prompt if args.prompt is not None else (str(case.prompt) if case.prompt else "")
    prompts = paths.read_prompts(prompt)
    picture = images.open_image(str(case.image))
    whole = paths.read_w2c(way) if way else None
    poses = 0 if whole is None else len(whole)
    if whole is not None and args.max_frames:
        whole = whole[: args.max_frames]
    intrinsics = paths.read_intrinsics(camera) if camera else None
    if intrinsics is not None:
        aspect = (intrinsics[0] * picture.width) / (intrinsics[1] * picture.height)
        if abs(aspect - 1) > _SQUARE:
            common.say(
                f"note: with {camera}, pixels of this {picture.width}x{picture.height} picture would be {1 / aspect:.2f} times as wide as "
                "high; are the intrinsics of another picture?"
            )
    masks = None
    files = args.masks or ([case.masks] if case.masks else [])
    if files:
        from spatia_model.perception.user_masks import read_masks

        masks = read_masks(files)
        if args.max_frames and len(masks) == poses and not args.shared_masks:
            masks = masks[: args.max_frames]
    elif args.shared_masks:
        raise ValueError("--shared-masks says how to use masks, and there are none: give --masks")
    return Asked(str(case.image), picture, whole, intrinsics, prompts, masks)


def frame_masks(asked: Asked, shared: bool, frames: int, rows: list[int] | None, shape: tuple[int, int]) -> UserMasks:
    """The masks at the size of the world's frames, one per frame of the video.

    rows: for each frame of the video the pose of the file it came from, where the path was resampled.
    """
    from spatia_model.perception.user_masks import UserMasks, fit_masks

    masks = asked.masks
    assert masks is not None
    if not shared and len(masks) > 1:
        poses = frames if asked.whole is None else len(asked.whole)
        if len(masks) != poses:
            raise ValueError(
                f"there are {len(masks)} masks for {poses} poses; give one (of the picture), one per pose, or --shared-masks (their union)"
            )
        masks = masks[rows] if rows is not None else masks
    return UserMasks(fit_masks(masks, (asked.picture.height, asked.picture.width), shape), shared)


def with_perception(world: Any, name: str, device: str) -> Any:
    """The same world with the perceiver of a preset, at the world's own frame rate."""
    import torch

    from spatia_model.generator.fitting import perceivers_wait
    from spatia_model.perception.registry import build_perceiver, perception_config

    config = dataclasses.replace(perception_config(name), frame_rate=frame_rate(world.config))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if hasattr(world.config, "map_rate"):  # the 5B's loop hands over the frames to reconstruct from, and no others; it fills the GPU
        waits = config.offload or perceivers_wait(device, world.generator.fit)
        config = dataclasses.replace(config, reconstruction_rate=config.frame_rate, offload=waits)
    changed = copy.copy(world)
    changed.perceiver = build_perceiver(config, device)
    if hasattr(world, "mapping"):  # map the frames that were looked at
        with contextlib.suppress(TypeError):
            changed.mapping = dataclasses.replace(world.mapping, fuse_stride=config.every)
    return changed


def new_poses(motion: str | None, whole: torch.Tensor | None, config: Any) -> torch.Tensor:
    """The new frames' poses (N, 4, 4), with the picture's own pose as the identity."""
    import torch

    from spatia_env import paths
    from spatia_model.geometry import se3

    if whole is not None:
        return se3.inverse(whole[:1]) @ whole[1:]
    return paths.motion_path(str(motion), torch.eye(4, dtype=torch.float64), config.frames_per_clip)


def tell_jumps(path: torch.Tensor) -> None:
    """A word on stderr where two frames stand far apart: the path may be of another scale, or not world-to-camera."""
    import torch

    from spatia_model.geometry import se3

    steps = se3.inverse(torch.cat([torch.eye(4, dtype=path.dtype)[None], path[:-1]])) @ path
    ways, turns = steps[:, :3, 3].norm(dim=1), se3.rotation_angle(steps)
    far, wide = int(ways.argmax()), int(turns.argmax())
    if float(ways[far]) > _JUMP[0] or math.degrees(float(turns[wide])) > _JUMP[1]:
        common.say(
            f"note: the path jumps (up to {float(ways[far]):.2f} m at frame {far + 1}, {math.degrees(float(turns[wide])):.0f} degrees at "
            f"frame {wide + 1} from one frame to the next); it should be in metres, world-to-camera"
        )


def clip_texts(prompts: list[str], clips: int) -> tuple[str, list[str]]:
    """The world's prompt and one text per clip. One line is the prompt; several are one per clip, the last one goes on."""
    if len(prompts) == 1:
        return prompts[0], [""] * clips
    if len(prompts) > clips:
        common.say(f"the prompt has {len(prompts)} lines for {clips} clips; the last {len(prompts) - clips} are not used")
    elif len(prompts) < clips:
        common.say(f"the prompt has {len(prompts)} lines for {clips} clips; the last line holds for the other {clips - len(prompts)}")
    return "", [prompts[min(index, len(prompts) - 1)] for index in range(clips)]


def tell_unknown_words(world: Any, prompts: list[str]) -> None:
    """A word on stderr about those that mean nothing to the model's text encoder."""
    lookup = getattr(world, "unknown_words", None)
    unknown = list(dict.fromkeys(word for line in prompts for word in lookup(line))) if lookup else []
    if unknown:
        shown = ", ".join(unknown[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
        common.say(f"note: words that this model does not know: {shown}")


def tell_limits(camera: Camera | None, masks: bool) -> None:
    """A word on stderr about what the embedded model does badly with inputs that are made for the 5B."""
    if camera is not None and (angle := math.degrees(2 * math.atan(camera.width / (2 * float(camera.K[0, 0]))))) < _NARROW:
        common.say(
            f"note: the middle of this picture shows {angle:.0f} degrees; below {_NARROW:.0f} the embedded model's depths are about twice "
            "as wrong as at 75, and what is near may bend or tear as the camera moves"
        )
    if masks:
        common.say(
            "note: what the masks call moving stays out of the map; the embedded model moves it as a whole, where the prompt says so in "
            'words that it knows ("the red box slides to the right"), and only what is brightly coloured'
        )


def frame_shape(config: Any) -> tuple[int, int]:
    """(height, width) of a world's frames."""
    return getattr(config, "image_shape", None) or (config.image_size, config.image_size)


def frame_rate(config: Any) -> float:
    """Frames per second of a world."""
    from spatia_model.config import FRAME_RATE

    return float(getattr(config, "frame_rate", FRAME_RATE))


def reads_any_text(config: Any) -> bool:
    """Whether the model's text encoder reads every script: that of the 5B does."""
    from spatia_model.config import ReleaseConfig

    return isinstance(config, ReleaseConfig)


def middle(size: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Largest centred box (left, top, right, bottom) of a picture of `size` (width, height) with the format of `shape` (height, width)."""
    width, height = size
    h, w = shape
    wide, high = (round(height * w / h), height) if width * h > height * w else (width, round(width * h / w))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def cropped_picture(picture: Image.Image, shape: tuple[int, int]) -> np.ndarray:
    """The picture's middle at `shape` (height, width): (H, W, 3) uint8."""
    from PIL import Image

    box = middle(picture.size, shape)
    part = picture.crop(box)
    size = (shape[1], shape[0])
    return np.asarray(part if part.size == size else part.resize(size, Image.Resampling.LANCZOS), dtype=np.uint8).copy()


def cropped_camera(intrinsics: tuple[float, float, float, float], size: tuple[int, int], shape: tuple[int, int]) -> Camera:
    """The camera of a picture's middle, from the normalised intrinsics of the whole picture of `size` (width, height)."""
    from spatia_model.geometry.camera import camera_from_normalised

    fx, fy, cx, cy = intrinsics
    width, height = size
    left, top, right, bottom = middle(size, shape)
    w, h = right - left, bottom - top
    return camera_from_normalised((fx * width / w, fy * height / h, (cx * width - left) / w, (cy * height - top) / h), shape[1], shape[0])


def clean(line: str) -> str:
    """A prompt the embedded tier can read: letters of other scripts are an error, stray symbols become spaces."""
    kept = "".join(character if character in TEXT_CHARSET or character.isalpha() else " " for character in line)
    return check_text(" ".join(kept.split()), _MAX_PROMPT, "the prompt")
