"""How an env's spaces and infos become the columns of a LeRobot dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from spatia_env.recording.face import EnvFace

STATE_NAMES = ["x", "y", "z", "qx", "qy", "qz", "qw"]
CAMERA_AXES = ["right", "down", "forward", "pitch", "yaw", "roll"]
DEFAULTS = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}


@dataclass(frozen=True)
class Columns:
    """The columns that an env gives.

    Args:
        features: name to dtype, shape and names, as `meta/info.json` holds them, without the default ones.
        action_text: where the action's text is, None if it has none.
    """

    features: dict[str, dict[str, Any]]

    @property
    def videos(self) -> list[str]:
        return [key for key, feature in self.features.items() if feature["dtype"] == "video"]

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        """What lies in Parquet."""
        return {key: feature for key, feature in self.features.items() if feature["dtype"] != "video"}


def columns_of(face: EnvFace, info: dict[str, Any]) -> Columns:
    """The columns of an env whose `reset` gave `info`. Raises ValueError for spaces that LeRobot has no form for."""
    features: dict[str, dict[str, Any]] = {}
    for name, space in _observation_leaves(face.observation_space).items():
        if is_image(space):
            height, width, channels = (int(side) for side in space.shape or ())
            features[name] = {"dtype": "video", "shape": [height, width, channels], "names": ["height", "width", "channels"]}
        else:
            features[name] = _vector("float32", int(np.prod(space.shape or (1,))), None)
    if _pose(info) is not None:
        features.setdefault("observation.state", _vector("float32", 7, STATE_NAMES))
        features["camera.pose"] = _vector("float64", 16, [f"T_world_camera_{row}{column}" for row in range(4) for column in range(4)])
    if _is_shaped(info.get("K"), (3, 3)):
        features["camera.intrinsics"] = _vector("float32", 4, ["fx", "fy", "cx", "cy"])
    features |= _action_features(face.action_space)
    features["next.reward"] = _vector("float32", 1, None)
    for name in ("next.done", "next.truncated", "next.success"):
        features[name] = _vector("bool", 1, None)
    return Columns(features)


def check_spaces(face: EnvFace) -> None:
    """Raise ValueError for spaces that LeRobot has no form for."""
    _observation_leaves(face.observation_space)
    _action_features(face.action_space)


def row_of(face: EnvFace, columns: Columns, observation: Any, info: dict[str, Any], action: Any) -> dict[str, Any]:
    """One row's values by column: what was seen, what `info` said of it, and what was done. The results are added by the writer."""
    row: dict[str, Any] = {}
    for name in _observation_leaves(face.observation_space):
        value = observation
        if isinstance(face.observation_space, spaces.Dict):
            value = observation[_key_of(name, face.observation_space)]
        row[name] = np.asarray(value)
    pose = _pose(info)
    if "camera.pose" in columns.features:
        pose = np.full((4, 4), np.nan) if pose is None else pose
        row.setdefault("observation.state", state_of(pose))
        row["camera.pose"] = pose.reshape(16)
    if "camera.intrinsics" in columns.features:
        K = np.asarray(info["K"], np.float64) if _is_shaped(info.get("K"), (3, 3)) else np.full((3, 3), np.nan)
        row["camera.intrinsics"] = np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2]])
    numbers, texts = _split_action(face.action_space, action)
    if numbers is not None:
        row["action"] = numbers
    return row | texts


def state_of(pose: np.ndarray) -> np.ndarray:
    """Position in metres and unit quaternion x, y, z, w (w >= 0) of a T_world_camera (4, 4)."""
    from scipy.spatial.transform import Rotation

    if not np.isfinite(pose).all():
        return np.full(7, np.nan)
    return np.concatenate([pose[:3, 3], Rotation.from_matrix(pose[:3, :3]).as_quat(canonical=True)])


def is_image(space: spaces.Space[Any]) -> bool:
    """(H, W, 3) uint8."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[2] == 3


def _observation_leaves(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    """Column name to space."""
    if isinstance(space, spaces.Dict):
        return {_name_of(key, child): _checked(child, f"observation {key!r}") for key, child in space.spaces.items()}
    return {"observation.image" if is_image(space) else "observation.state": _checked(space, "observation")}


def _name_of(key: str, space: spaces.Space[Any]) -> str:
    key = key.replace("/", "_").replace(".", "_")
    return f"observation.images.{key}" if is_image(space) else f"observation.{key}"


def _key_of(name: str, space: spaces.Dict) -> str:
    return next(key for key, child in space.spaces.items() if _name_of(key, child) == name)


def _checked(space: spaces.Space[Any], what: str) -> spaces.Space[Any]:
    if is_image(space) or isinstance(space, spaces.Discrete) or (isinstance(space, spaces.Box) and len(space.shape) <= 1):
        return space
    raise ValueError(
        f"LeRobot has no form for the {what} space {space}; it takes pictures (H, W, 3) of uint8, vectors, and dictionaries of these: "
        "wrap the env, or use the minari format"
    )


def _action_features(space: spaces.Space[Any]) -> dict[str, dict[str, Any]]:
    if isinstance(space, spaces.Discrete):
        return {"action": _vector("int64", 1, None)}
    names: list[str] = []
    texts: dict[str, dict[str, Any]] = {}
    for key, leaf in _action_leaves(space).items():
        if isinstance(leaf, spaces.Text):
            texts[key or "text"] = _vector("string", 1, None)
        elif isinstance(leaf, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)) and len(leaf.shape) <= 1:
            size = int(np.prod(leaf.shape or (1,)))
            names += CAMERA_AXES if key == "camera" and size == 6 else [f"{key or 'action'}_{number}" for number in range(size)]
        elif isinstance(leaf, spaces.Discrete):
            names.append(key)
        else:
            raise ValueError(f"LeRobot has no form for the action space {space}; wrap the env, or use the minari format")
    return ({"action": _vector("float32", len(names), names)} if names else {}) | texts


def _action_leaves(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    return dict(space.spaces.items()) if isinstance(space, spaces.Dict) else {"": space}


def _split_action(space: spaces.Space[Any], action: Any) -> tuple[np.ndarray | None, dict[str, str]]:
    leaves = _action_leaves(space)
    parts = action if isinstance(space, spaces.Dict) else {"": action}
    texts = {key or "text": str(parts[key]) for key, leaf in leaves.items() if isinstance(leaf, spaces.Text)}
    numbers = [np.asarray(parts[key]).reshape(-1) for key, leaf in leaves.items() if not isinstance(leaf, spaces.Text)]
    return (np.concatenate(numbers) if numbers else None), texts


def _vector(dtype: str, size: int, names: list[str] | None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [size], "names": names}


def _pose(info: dict[str, Any]) -> np.ndarray | None:
    """The camera's pose (4, 4) at the observation: the last of the clip's."""
    poses = info.get("poses")
    if isinstance(poses, np.ndarray) and poses.ndim == 3 and poses.shape[1:] == (4, 4) and len(poses):
        return poses[-1].astype(np.float64)
    return None


def _is_shaped(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, np.ndarray) and value.shape == shape
