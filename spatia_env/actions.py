"""From an action to a camera path, in calibrated metres and radians.

One step is one clip of `frames_per_clip` frames. Its path is a constant-velocity twist in the camera's own frame
(OpenCV axes): frame k of T stands at ``T_world_camera @ exp(twist * k / T)``, so the last frame has the whole motion.
"""

from __future__ import annotations

import math
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

if TYPE_CHECKING:
    import torch

CAMERA_AXES = ("right", "down", "forward", "pitch", "yaw", "roll")
MAX_TRANSLATION = 0.5  # metres per step
MAX_ROTATION = math.radians(30)  # radians per step
MAX_TEXT = 240  # characters in one action's text
TEXT_CHARSET = string.ascii_letters + string.digits + " .,;:!?'\"()-/&%+"

NAV_FORWARD = 0.25  # metres
NAV_TURN = math.radians(15)
NAV_MAX_PITCH = math.radians(60)  # looking further up or down stays where it is
NAV_ACTIONS = ("forward", "turn_left", "turn_right", "look_up", "look_down", "stay")
_ROUNDING = 1e-6  # how far outside -1..1 a float32 may fall


@dataclass(frozen=True)
class Plan:
    """What one action asks of the world."""

    T_world_camera: torch.Tensor  # (T, 4, 4) float64
    text: str


def check_text(text: Any, limit: int = MAX_TEXT, name: str = "text") -> str:
    """Return `text` if it is a string the world can read.

    Raises:
        ValueError: not a string, longer than `limit`, or with characters outside `TEXT_CHARSET`; names them.
    """
    if not isinstance(text, str):
        raise ValueError(f"{name} is a {type(text).__name__}; give a string, '' for none")
    if len(text) > limit:
        raise ValueError(f"{name} has {len(text)} characters, the limit is {limit}: shorten it, or spread it over several steps")
    foreign = sorted(set(text) - set(TEXT_CHARSET))
    if foreign:
        shown = " ".join(repr(character) for character in foreign[:8]) + (" ..." if len(foreign) > 8 else "")
        raise ValueError(
            f"{name} holds characters the world cannot read: {shown}; use English letters, digits and {TEXT_CHARSET[62:].strip()}"
        )
    return str(text)


def twist_path(T_world_camera: torch.Tensor, twist: np.ndarray, frames: int) -> torch.Tensor:
    """The constant-velocity path of one clip.

    Args:
        T_world_camera: (4, 4) float64, where the camera stands.
        twist: (6,) metres and radians in the camera's frame for the whole clip.
        frames: T.

    Returns:
        (T, 4, 4) float64; the last pose has the whole twist.
    """
    import torch

    from spatia_model.geometry import se3

    share = torch.arange(1, frames + 1, dtype=torch.float64)[:, None] / frames
    T_start_camera = se3.exp(share * torch.from_numpy(np.asarray(twist, dtype=np.float64)))
    # Products of products drift off the rotations over thousands of steps.
    return se3.orthonormalise(T_world_camera.to(torch.float64) @ T_start_camera)


def level_twist(
    T_world_camera: torch.Tensor,
    forward: float = 0.0,
    right: float = 0.0,
    down: float = 0.0,
    turn: float = 0.0,
    look: float = 0.0,
    roll: float = 0.0,
) -> np.ndarray:
    """The camera-frame twist of a walker on level ground (gravity is +y of the world), whatever the camera's pitch.

    Args:
        T_world_camera: (4, 4) where the camera stands.
        forward, right, down: metres along the heading, to its right and along gravity.
        turn: radians about the vertical, positive to the right.
        look: radians about the camera's right axis, positive up.
        roll: radians about the optical axis, positive clockwise.

    Returns:
        (6,) float64. Turning and walking at once follows the arc of a constant-velocity motion.
    """
    R_world_camera = T_world_camera[:3, :3].to("cpu").double().numpy()
    right_axis = R_world_camera[:, 0].copy()
    right_axis[1] = 0.0
    norm = float(np.linalg.norm(right_axis))
    right_axis = right_axis / norm if norm > 1e-6 else np.array([1.0, 0.0, 0.0])
    gravity = np.array([0.0, 1.0, 0.0])
    ahead = np.cross(right_axis, gravity)  # x cross y = z
    move = R_world_camera.T @ (right * right_axis + down * gravity + forward * ahead)
    rotate = R_world_camera.T @ (turn * gravity) + np.array([look, 0.0, roll])
    return np.concatenate([move, rotate])


def pitch_of(T_world_camera: torch.Tensor) -> float:
    """How far the camera looks up, in radians (gravity is +y of the world)."""
    return -math.asin(max(-1.0, min(1.0, float(T_world_camera[1, 2]))))


class ContinuousMotion:
    """The action space of `Spatia-v0`: six fractions of the limits per step, and a text.

    Positive values move right, down, forward; look up (pitch), turn right (yaw), tilt clockwise (roll).
    """

    def __init__(self, frames_per_clip: int, max_translation: float = MAX_TRANSLATION, max_rotation: float = MAX_ROTATION) -> None:
        for name, value, top in (("max_translation", max_translation, 10.0), ("max_rotation", max_rotation, math.pi)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not 0 < value <= top:
                unit = "metres" if name == "max_translation" else "radians"
                raise ValueError(f"{name} is {value!r}; give {unit} per step, above 0 and at most {top:g}")
        self.frames_per_clip = frames_per_clip
        self.limits = np.array([max_translation] * 3 + [max_rotation] * 3)
        self.space = spaces.Dict(
            {
                "camera": spaces.Box(-1.0, 1.0, (6,), np.float32),
                "text": spaces.Text(MAX_TEXT, min_length=0, charset=TEXT_CHARSET),
            }
        )

    def plan(self, action: Any, T_world_camera: torch.Tensor) -> Plan:
        """Check `action` and turn it into a path from `T_world_camera` (4, 4).

        Raises:
            ValueError: the action is not in the space; says which part and how to mend it.
        """
        form = "{'camera': six numbers in -1..1, 'text': a string}"
        if not isinstance(action, dict):
            raise ValueError(f"the action is a {type(action).__name__}; give a dictionary {form}")
        if set(action) != {"camera", "text"}:
            raise ValueError(f"the action has the keys {sorted(map(str, action))}; give exactly {form} ('text': '' for no text)")
        twist = self._camera(action["camera"]) * self.limits
        text = check_text(action["text"], name="the action's text")
        return Plan(twist_path(T_world_camera, twist, self.frames_per_clip), text)

    def _camera(self, camera: Any) -> np.ndarray:
        try:
            values = np.asarray(camera, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the action's camera cannot be read as numbers ({error}); give six in -1..1: {', '.join(CAMERA_AXES)}"
            ) from error
        if values.shape != (6,):
            raise ValueError(f"the action's camera has shape {values.shape}; give six numbers in -1..1: {', '.join(CAMERA_AXES)}")
        for axis, value in zip(CAMERA_AXES, values, strict=True):
            if not math.isfinite(value):
                raise ValueError(f"the action's camera holds {value} for {axis}; give a finite number in -1..1")
            if abs(value) > 1 + _ROUNDING:
                raise ValueError(
                    f"the action's camera holds {value:g} for {axis}, outside -1..1 (fractions of the motion limit per step): "
                    "clip it, or spread the motion over several steps"
                )
        return np.clip(values, -1.0, 1.0)


class NavMotion:
    """The action space of `SpatiaNav-v0`: walk, turn and look in fixed amounts, on level ground.

    ======  ===========  =======================================================
    action  name         motion
    ======  ===========  =======================================================
    0       forward      0.25 m along the heading, level whatever the pitch
    1       turn_left    15 degrees about the vertical
    2       turn_right   15 degrees about the vertical
    3       look_up      15 degrees, up to 60 above the horizon
    4       look_down    15 degrees, down to 60 below the horizon
    5       stay         none; the world goes on
    ======  ===========  =======================================================
    """

    def __init__(self, frames_per_clip: int) -> None:
        self.frames_per_clip = frames_per_clip
        self.space = spaces.Discrete(len(NAV_ACTIONS))

    def plan(self, action: Any, T_world_camera: torch.Tensor) -> Plan:
        """Check `action` (0..5) and turn it into a path from `T_world_camera` (4, 4). Raises ValueError when it is another."""
        twist = nav_twist(action, T_world_camera)
        return Plan(twist_path(T_world_camera, twist, self.frames_per_clip), "")


def nav_twist(action: Any, T_world_camera: torch.Tensor) -> np.ndarray:
    """The camera-frame twist (6,) of one of `NAV_ACTIONS`, given by its number. Raises ValueError for another."""
    listing = ", ".join(f"{number} {name}" for number, name in enumerate(NAV_ACTIONS))
    is_integer = isinstance(action, (int, np.integer)) or (
        isinstance(action, np.ndarray) and action.shape == () and action.dtype.kind in "iu"
    )
    if isinstance(action, bool) or not is_integer:
        raise ValueError(f"the action is {action!r}; give one integer: {listing}")
    if not 0 <= int(action) < len(NAV_ACTIONS):
        raise ValueError(f"the action is {int(action)}; give one of: {listing}")
    name = NAV_ACTIONS[int(action)]
    pitch = pitch_of(T_world_camera)
    if name == "forward":
        return level_twist(T_world_camera, forward=NAV_FORWARD)
    if name in ("turn_left", "turn_right"):
        return level_twist(T_world_camera, turn=NAV_TURN if name == "turn_right" else -NAV_TURN)
    if name == "look_up":
        return level_twist(T_world_camera, look=max(0.0, min(NAV_TURN, NAV_MAX_PITCH - pitch)))
    if name == "look_down":
        return level_twist(T_world_camera, look=-max(0.0, min(NAV_TURN, NAV_MAX_PITCH + pitch)))
    return np.zeros(6)
