"""Pictures to files: mp4, GIF, and panels side by side with captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CAPTION_HEIGHT = 26  # pixels


class VideoWriter:
    """An mp4 written frame by frame, so that its length costs no memory. Use it in a `with`."""

    def __init__(self, path: str | Path, fps: float) -> None:
        import imageio.v2 as imageio

        self._writer: Any = imageio.get_writer(
            str(path), format="FFMPEG", mode="I", fps=fps, codec="libx264", quality=8, macro_block_size=2, ffmpeg_log_level="error"
        )

    def add(self, frame: np.ndarray) -> None:
        """Append one frame (H, W, 3) uint8, always of the same size."""
        self._writer.append_data(np.ascontiguousarray(frame))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.close()


def panels(pictures: Sequence[tuple[str, np.ndarray]], size: int) -> np.ndarray:
    """Pictures (H, W, 3) uint8 side by side, each scaled to `size` pixels, with its caption above."""
    sheet = Image.new("RGB", (size * len(pictures), size + CAPTION_HEIGHT), (18, 18, 20))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for column, (caption, picture) in enumerate(pictures):
        sheet.paste(Image.fromarray(scaled(picture, size)), (column * size, CAPTION_HEIGHT))
        draw.text((column * size + 8, 5), caption, fill=(225, 225, 225), font=font)
    return np.asarray(sheet)


def scaled(picture: np.ndarray, size: int) -> np.ndarray:
    """`picture` (H, W, 3) uint8 at `size` x `size`."""
    if picture.shape[:2] == (size, size):
        return picture
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))


def write_gif(path: str | Path, frames: Sequence[np.ndarray], fps: float, colors: int = 160) -> None:
    """A looping GIF of frames (H, W, 3) uint8, with one palette for all so that it stays small.

    The palette covers what colours there are, however few pixels have them: a small pink ball stays pink (median cut made it brown).
    """
    pictures = [Image.fromarray(frame) for frame in frames]
    sample = np.concatenate([np.asarray(picture.resize((128, 64))) for picture in pictures[:: max(1, len(pictures) // 16)]])
    palette = Image.fromarray(sample).quantize(colors, method=Image.Quantize.MAXCOVERAGE)
    indexed = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    indexed[0].save(str(path), save_all=True, append_images=indexed[1:], duration=round(1000 / fps), loop=0, optimize=True)
