"""`spatia demo`: walk away through a world grown from one picture, come back, and see what the memory is worth."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from spatia_env.actions import check_text
from spatia_env.commands import common

OUTWARD = "right 30, forward 0.8, right 60, forward 0.4, wait 1, left 30"
EVENT = "a pink ball rolls to the right"
EVENT_CLIPS = 2  # at the end, standing where it began
PANEL = 384  # pixels
GIF_PANEL = 160
GIF_FRAMES = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", default=None, help="your own picture (default: a bundled sample)")
    parser.add_argument("--out", default="outputs", help="folder for the results (default: %(default)s)")
    parser.add_argument("--prompt", default="", help="a sentence about the place")
    parser.add_argument("--event", default=EVENT, help="what happens at the end, back in the first view (default: %(default)r)")
    parser.add_argument("--motion", default=OUTWARD, help="the way out; the way back is the same, backwards (default: %(default)r)")
    common.add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    import torch

    from spatia_env import images, paths
    from spatia_env.compare import psnr, ssim
    from spatia_env.inputs import check_read_whole

    folder = common.writable_folder(args.out)
    event, prompt = check_text(args.event, name="--event"), check_text(args.prompt, 2000, "--prompt")
    picture = images.open_image(args.image)
    common.say("loading the model")
    world = common.load_world(args.model, args.device)
    check_read_whole(world, "--prompt and --event", prompt, event)
    first = images.load_image(picture, world.config.image_size)
    clips = paths.whole_clips(there_and_back(args.motion, world.config.frames_per_clip), world.config.frames_per_clip)
    texts, stand = [""] * len(clips), [clips[-1][-1:].repeat(len(clips[-1]), 1, 1)] * EVENT_CLIPS

    start = world.begin(torch.from_numpy(first), prompt=prompt, seed=args.seed)
    film = Film(folder, first, start)
    began = time.monotonic()
    with film:
        with_memory = common.walk(world, start, clips, texts, True, film.add, "walking, memory on")
        ended = common.walk(world, with_memory, stand, [event] * EVENT_CLIPS, True, film.add, "standing, and something happens")
    seconds = time.monotonic() - began
    without = common.walk(world, start, clips, texts, False, None, "walking, memory off")
    ended.memory.save_ply(folder / "memory.ply")
    film.write_gif(folder / "demo.gif")

    last = {"on": with_memory.frames[-1].cpu().numpy(), "off": without.frames[-1].cpu().numpy()}
    figures: dict[str, Any] = {
        "image": args.image or "bundled sample",
        "model": str(args.model),
        "seed": args.seed,
        "clips": len(clips) + EVENT_CLIPS,
        "frames": film.frames,
        "event": {"clip": len(clips), "text": event},
        "psnr_c": {name: round(psnr(first, frame), 2) for name, frame in last.items()},
        "ssim_c": {name: round(ssim(first, frame), 4) for name, frame in last.items()},
        "coverage": [round(value, 4) for value in film.coverage],
        "memory_points": len(ended.memory),
        "frames_per_second_with_video": round(film.frames / max(seconds, 1e-9), 1),
        "files": {name: str(folder / name) for name in ("demo.mp4", "demo.gif", "memory.ply", "figures.json")},
    }
    common.write_json(folder / "figures.json", figures)
    if args.json:
        print(json.dumps(figures))
        return 0
    print(f"{len(clips)} clips away and back to the first view, then {EVENT_CLIPS} of {event!r}: {film.frames} frames")
    for name in ("on", "off"):
        print(
            f"memory {name:3}: back at the start, against the first picture: "
            f"PSNR {figures['psnr_c'][name]:.2f} dB, SSIM {figures['ssim_c'][name]:.3f}"
        )
    print(f"see {folder / 'demo.mp4'} (frame | projection | top view), {folder / 'demo.gif'}, {folder / 'memory.ply'}")
    return 0


def there_and_back(motion: str, frames_per_clip: int) -> Any:
    """The path of `motion` and the same way back: (N, 4, 4) float64, the last pose is the identity again."""
    import torch

    from spatia_env import paths

    start = torch.eye(4, dtype=torch.float64)
    out = paths.motion_path(motion, start, frames_per_clip)
    return torch.cat([out, out[:-1].flip(0), start[None]])


class Film:
    """demo.mp4 as it grows: frame | projection | top view; and a thinned copy for the GIF."""

    def __init__(self, folder: Path, first: np.ndarray, state: Any) -> None:
        from spatia_env.video import VideoWriter
        from spatia_model.config import FRAME_RATE

        self.frames, self.coverage = 0, []
        self._fps = FRAME_RATE
        self._poses = [np.eye(4)]
        self._small: list[np.ndarray] = []
        self._stride = 2
        self._writer = VideoWriter(folder / "demo.mp4", self._fps)
        self._draw(first, np.zeros_like(first), self._overview(state), "")

    def add(self, view: common.ClipView) -> None:
        """Draw one clip."""
        self.coverage.append(view.coverage)
        self._poses.extend(view.poses)
        top = self._overview(view.state)
        for frame, projection in zip(view.frames, view.projection, strict=True):
            self._draw(frame, projection, top, view.text)
            self.frames += 1

    def write_gif(self, path: Path) -> None:
        from spatia_env.video import write_gif

        keep = self._small[:: max(1, -(-len(self._small) // GIF_FRAMES))]
        write_gif(path, keep, self._fps)

    def __enter__(self) -> Film:
        self._writer.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)

    def _overview(self, state: Any) -> np.ndarray:
        import torch

        from spatia_model.geometry.overview import top_view

        return np.asarray(top_view(state.memory, torch.from_numpy(np.stack(self._poses)), PANEL))

    def _draw(self, frame: np.ndarray, projection: np.ndarray, top: np.ndarray, text: str) -> None:
        from spatia_env.video import panels, scaled

        caption = f'generated: "{text}"' if text else "generated"
        self._writer.add(panels([(caption, frame), ("what the memory knew", projection), ("memory from above, and the path", top)], PANEL))
        if self.frames % self._stride == 0:
            self._small.append(np.concatenate([scaled(picture, GIF_PANEL) for picture in (frame, projection, top)], axis=1))
