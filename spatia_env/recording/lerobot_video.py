"""H.264 for LeRobot: one raw stream per episode, joined into mp4 files without encoding again."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

# A key frame every 2 frames, as LeRobot has it, makes single frames quick to reach. Without B-frames, streams can be joined
# byte after byte. One thread: the stream does not depend on the machine, and episodes run side by side anyway.
_OPTIONS = ["-g", "2", "-crf", "18", "-bf", "0", "-threads", "1", "-f", "h264"]
_BLOCK = 2**20  # bytes


def pixel_format(width: int, height: int) -> str:
    """yuv420p halves the colour's resolution, which needs even sides."""
    return "yuv420p" if width % 2 == 0 and height % 2 == 0 else "yuv444p"


class StreamWriter:
    """Frames to a raw H.264 stream; the frames of one episode."""

    def __init__(self, path: Path, width: int, height: int) -> None:
        import imageio_ffmpeg

        self._writer: Any = imageio_ffmpeg.write_frames(
            str(path),
            (width, height),
            fps=1,  # a raw stream has no clock
            codec="libx264",
            pix_fmt_out=pixel_format(width, height),
            quality=None,  # type: ignore[arg-type]  # -crf says it
            macro_block_size=1,
            ffmpeg_log_level="error",
            output_params=_OPTIONS,
        )
        self._writer.send(None)

    def add(self, frame: np.ndarray) -> None:
        """One frame (H, W, 3) uint8."""
        self._writer.send(np.ascontiguousarray(frame))

    def close(self) -> None:
        self._writer.close()


def join(streams: Iterable[Path], target: Path, fps: float) -> None:
    """Write raw streams, one after the other, as one mp4 whose frame k stands at k / fps seconds. Raises OSError when ffmpeg fails."""
    import imageio_ffmpeg

    rate = Fraction(fps).limit_denominator(1000)
    ticks = (
        f"{rate.denominator}/{rate.numerator}/TB"  # of one frame; the clock within the stream, which ffmpeg would go by, is not the env's
    )
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "h264", "-i", "-", "-c", "copy"]
    command += ["-bsf:v", f"setts=ts=round(N*{ticks}):duration=round({ticks})", "-movflags", "+faststart", "-f", "mp4", str(target)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    try:
        for stream in streams:
            with stream.open("rb") as file:
                while block := file.read(_BLOCK):
                    process.stdin.write(block)
    except BrokenPipeError:
        pass  # ffmpeg says why, below
    _, said = process.communicate()
    if process.returncode:
        raise OSError(f"ffmpeg could not write {target}: {said.decode(errors='replace').strip()}")
