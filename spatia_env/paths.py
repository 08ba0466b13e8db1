"""Camera paths from what a person types or has in files: motion sentences, w2c.txt, intrinsics.txt, prompt.txt."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spatia_env.actions import MAX_ROTATION, MAX_TRANSLATION, level_twist, twist_path

if TYPE_CHECKING:
    import torch

MAX_CLIPS = 5000
_TURN, _MOVE, _WAIT = "degrees", "metres", "clips"
# words -> (argument of level_twist, sign, unit)
_MOTIONS: dict[str, tuple[str, float, str]] = {
    "forward": ("forward", 1, _MOVE),
    "back": ("forward", -1, _MOVE),
    "left": ("turn", -1, _TURN),
    "right": ("turn", 1, _TURN),
    "strafe left": ("right", -1, _MOVE),
    "strafe right": ("right", 1, _MOVE),
    "up": ("down", -1, _MOVE),
    "down": ("down", 1, _MOVE),
    "look up": ("look", 1, _TURN),
    "look down": ("look", -1, _TURN),
    "roll left": ("roll", -1, _TURN),
    "roll right": ("roll", 1, _TURN),
    "wait": ("", 0, _WAIT),
}
_ALIASES = {"forwards": "forward", "backward": "back", "backwards": "back", "turn left": "left", "turn right": "right", "stay": "wait"}
_UNITS = {
    "": None,
    "m": (_MOVE, 1.0),
    "cm": (_MOVE, 0.01),
    "deg": (_TURN, 1.0),
    "degrees": (_TURN, 1.0),
    "°": (_TURN, 1.0),
    "clips": (_WAIT, 1.0),
    "clip": (_WAIT, 1.0),
}
_PHRASE = re.compile(r"([a-z]+(?: [a-z]+)?)\s+([0-9]*\.?[0-9]+)\s*(m|cm|deg|degrees|°|clips?)?")
_PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "\u00a0": " ", "\t": " "})


def parse_motion(sentence: str) -> list[tuple[str, float]]:
    """Read ``"forward 2, left 90, look up 15, wait 1"``.

    Motions: forward, back, strafe left/right, up, down in metres; left, right (turns), look up/down, roll left/right in
    degrees; wait in clips.

    Returns:
        (motion, amount) pairs: amounts in metres, radians or clips, never negative.

    Raises:
        ValueError: names the phrase that could not be read.
    """
    motions = []
    for phrase in re.split(r"[,;\n]|\bthen\b", sentence.lower()):
        phrase = " ".join(phrase.split())
        if not phrase:
            continue
        match = _PHRASE.fullmatch(phrase)
        name = _ALIASES.get(match[1], match[1]) if match else ""
        if match is None or name not in _MOTIONS:
            raise ValueError(
                f"motion {phrase!r} is not understood; write a motion and an amount: {', '.join(_MOTIONS)}; e.g. 'forward 2, left 90'"
            )
        unit = _MOTIONS[name][2]
        given = _UNITS[match[3] or ""]
        if given is not None and given[0] != unit:
            hint = f" (to move sideways: 'strafe {name} {match[2]}')" if name in ("left", "right") else ""
            raise ValueError(f"motion {phrase!r}: {name} is counted in {unit}, not {given[0]}{hint}")
        amount = float(match[2]) * (given[1] if given else 1.0)
        if unit == _WAIT and amount != int(amount):
            raise ValueError(f"motion {phrase!r}: wait takes a whole number of clips")
        motions.append((name, math.radians(amount) if unit == _TURN else amount))
    if not motions:
        raise ValueError("the motion is empty; write for example 'forward 2, left 90, right 90'")
    return motions


def motion_path(
    sentence: str,
    T_world_camera: torch.Tensor,
    frames_per_clip: int,
    max_translation: float = MAX_TRANSLATION,
    max_rotation: float = MAX_ROTATION,
) -> torch.Tensor:
    """The path of a motion sentence from `T_world_camera` (4, 4), level with the ground.

    Each motion is split evenly into the fewest clips that keep the limits per clip. Returns (clips * frames_per_clip, 4, 4) float64.
    """
    import torch

    parts, pose = [], T_world_camera.to(torch.float64)
    total = 0
    for name, amount in parse_motion(sentence):
        argument, sign, unit = _MOTIONS[name]
        limit = {_MOVE: max_translation, _TURN: max_rotation, _WAIT: 1.0}[unit]
        clips = math.ceil(amount / limit - 1e-9)
        total += clips
        if total > MAX_CLIPS:
            raise ValueError(
                f"the motion takes more than {MAX_CLIPS} clips at {max_translation:g} m "
                f"and {math.degrees(max_rotation):g} degrees each; shorten it"
            )
        for _ in range(clips):
            twist = np.zeros(6) if unit == _WAIT else level_twist(pose, **{argument: sign * amount / clips})
            part = twist_path(pose, twist, frames_per_clip)
            parts.append(part)
            pose = part[-1]
    if not parts:
        raise ValueError(f"the motion {sentence!r} goes nowhere; give amounts above 0")
    return torch.cat(parts)


def read_w2c(path: str | Path) -> torch.Tensor:
    """Read a world-to-camera file (one JSON list per line, 3x4 or 4x4, OpenCV axes) and turn it round.

    Returns:
        (N, 4, 4) float64 T_world_camera, camera to world.

    Raises:
        ValueError: missing, not of that form, not rigid; names the line.
    """
    import torch

    from spatia_model.geometry import se3

    rows = []
    for number, line in enumerate(_read_lines(path, "camera path"), start=1):
        where = f"{path}, line {number}"
        try:
            matrix = np.asarray(json.loads(line), dtype=np.float64)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{where} is not a JSON list of numbers ({error}); write one 3x4 or 4x4 world-to-camera matrix per line"
            ) from error
        if matrix.shape not in ((3, 4), (4, 4)):
            raise ValueError(f"{where} has shape {matrix.shape}; write one 3x4 or 4x4 world-to-camera matrix per line")
        full = np.eye(4)
        full[:3] = matrix[:3]
        if not np.isfinite(matrix).all():
            raise ValueError(f"{where} holds NaN or infinite numbers")
        if matrix.shape == (4, 4) and not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-6):
            raise ValueError(f"{where} ends in the row {matrix[3].tolist()}; a rigid matrix ends in 0, 0, 0, 1 (is it transposed?)")
        rotation = full[:3, :3]
        if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-2) or np.linalg.det(rotation) < 0:
            raise ValueError(
                f"{where} is not a rotation and a translation; divide the scale out of it, "
                "and keep OpenCV axes (x right, y down, z forward)"
            )
        rows.append(full)
    if len(rows) < 2:
        raise ValueError(f"{path} holds {len(rows)} poses; a path needs at least 2, the first picture's and one more")
    T_camera_world = se3.orthonormalise(torch.from_numpy(np.stack(rows)))
    return se3.inverse(T_camera_world)


def read_intrinsics(path: str | Path) -> tuple[float, float, float, float]:
    """Read ``[fx fy cx cy]``, normalised by width, height, width, height: four numbers on one line or on four.

    Several equal lines, one per frame, are one camera. Raises ValueError when it is something else.
    """
    number = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
    rows = [[float(found) for found in re.findall(number, line)] for line in _read_lines(path, "intrinsics")]
    numbers = [value for row in rows for value in row]
    if len(rows) > 1 and all(len(row) == 4 for row in rows):
        if any(abs(value - first) > 1e-6 for row in rows for value, first in zip(row, rows[0], strict=True)):
            raise ValueError(
                f"{path} holds a different camera on different lines; one camera holds for the whole path: keep the first line"
            )
        numbers = rows[0]
    if len(numbers) != 4:
        raise ValueError(f"{path} holds {len(numbers)} numbers; write fx fy cx cy, normalised by width, height, width, height")
    fx, fy, cx, cy = numbers
    if not (0.05 < fx < 20 and 0.05 < fy < 20 and 0 < cx < 1 and 0 < cy < 1):
        raise ValueError(
            f"{path} holds {numbers}; expected normalised values (fx, fy around 1, cx, cy around 0.5): divide pixels by width and height"
        )
    return fx, fy, cx, cy


def read_prompts(given: str) -> list[str]:
    """A prompt as typed, or the lines of a prompt file: one for all clips, or one per clip."""
    is_path = len(given) < 1024 and "\n" not in given and Path(given).is_file()
    lines = _read_lines(given, "prompt") if is_path else given.splitlines()
    if not is_path and given.endswith(".txt"):
        raise ValueError(f"prompt file {given!r} does not exist; check the path")
    return [" ".join(line.translate(_PLAIN).split()) for line in lines if line.strip()] or [""]


def resample(T_world_camera: torch.Tensor, rate: float, frame_rate: float) -> tuple[torch.Tensor, list[int]]:
    """A path of `rate` poses per second at `frame_rate` poses per second, at constant velocity between the poses given.

    Returns:
        (M, 4, 4) float64 that begins with the first pose, and for each the nearest pose given.
    """
    import torch

    from spatia_model.geometry import se3

    count = len(T_world_camera)
    at = [k * rate / frame_rate for k in range(math.floor((count - 1) / rate * frame_rate + 1e-9) + 1)]
    if len(at) < 2:
        raise ValueError(
            f"a path of {count} poses at {rate:g} per second is shorter than one frame at {frame_rate:g} per second; give a longer path, "
            "or leave out --path-rate to take every pose as a frame"
        )
    before = [min(math.floor(x + 1e-9), count - 2) for x in at]
    share = torch.tensor([x - k for x, k in zip(at, before, strict=True)], dtype=torch.float64)
    T = T_world_camera.to(torch.float64)
    start = T[before]
    twist = se3.log(se3.inverse(start) @ T[[k + 1 for k in before]])
    return start @ se3.exp(twist * share[:, None]), [round(x) for x in at]


def split_clips(path: torch.Tensor, config: Any) -> list[torch.Tensor]:
    """Cut a path (N, 4, 4) of new frames into clips as a world's config wants them.

    A config with `clip_lengths` says how long each is (the 5B's first clip is longer, its last may be shorter); else every clip has
    `frames_per_clip`, the last filled up by standing still.
    """
    if hasattr(config, "clip_lengths"):
        return list(path.split(config.clip_lengths(len(path))))
    return whole_clips(path, config.frames_per_clip)


def whole_clips(path: torch.Tensor, frames_per_clip: int) -> list[torch.Tensor]:
    """Cut a path (N, 4, 4) into clips of `frames_per_clip`, the last filled up by standing still."""
    import torch

    missing = -len(path) % frames_per_clip
    if missing:
        path = torch.cat([path, path[-1:].repeat(missing, 1, 1)])
    return list(path.split(frames_per_clip))


def _read_lines(path: Any, what: str) -> list[str]:
    path = Path(path).expanduser()
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{what} file {str(path)!r} cannot be read ({getattr(error, 'strerror', None) or error}); check the path"
        ) from error
    if not lines:
        raise ValueError(f"{what} file {str(path)!r} is empty")
    return lines
