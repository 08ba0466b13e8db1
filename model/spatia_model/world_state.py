"""A WorldState as a folder: memory as PLY, tensors as safetensors, the rest as JSON. Loading gives bit-equal futures."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from spatia_model.generator.checkpoint import read_tensors, sha256, verify_checksum
from spatia_model.memory.entities import Entities
from spatia_model.memory.point_memory import PointMemory
from spatia_model.memory.references import Keyframe, KeyframeBank
from spatia_model.types import Camera, Projection, WorldState

FORMAT = 1
FILES = ("memory.ply", "state.safetensors")  # beside world.json, which holds their SHA-256
SURROUNDINGS = "surroundings.ply"  # likewise, where the model keeps them
_PLAIN = ("frames", "frames_dynamic", "T_world_camera", "rng_state")
_ENTITIES = ("positions", "colors", "radii", "owner", "past", "watched")
_PROJECTION = ("rgb", "depth", "mask", "index")


def save_state(state: WorldState, folder: str | Path) -> None:
    """Write `state` to `folder`, whole or not at all; a world saved there before is replaced.

    Raises:
        ValueError: the folder can't be written, or holds something else.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "world.json").exists())):
        raise ValueError(f"{folder} exists and is no saved world: give a new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ValueError(f"cannot write to {folder.parent} ({error.strerror or error}): give a folder you may write to") from error
    try:
        state.memory.save_ply(place / "memory.ply")
        save_file(_tensors(state), place / "state.safetensors")
        if state.surroundings is not None:
            state.surroundings.save_ply(place / SURROUNDINGS)
        described = {
            "format": FORMAT,
            "width": state.camera.width,
            "height": state.camera.height,
            "prompt": state.prompt,
            "clip_count": state.clip_count,
            "frame_count": state.frame_count,
            "keyframe_ids": list(state.keyframes.ids),
            "max_keyframes": state.keyframes.max_keyframes,
            "next_keyframe": state.keyframes.next_id,
            "max_points": state.memory.max_points,
            "sha256": {file.name: sha256(file) for file in sorted(place.iterdir())},
        }
        (place / "world.json").write_text(json.dumps(described, indent=1) + "\n")
        place.chmod(0o755)
        _exchange(place, folder)
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror or error}): is the disk full?") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def load_state(folder: str | Path) -> WorldState:
    """Read what `save_state` wrote.

    Raises:
        ValueError: a file is missing or damaged; it says which.
    """
    folder = Path(folder)
    for name in ("world.json", *FILES):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no saved world: {name} is missing; give a folder that save_state wrote")
    try:
        described = json.loads((folder / "world.json").read_text())
        if described["format"] != FORMAT:
            raise ValueError(f"its format is {described['format']}, this version reads {FORMAT}")
        recorded = {name: described["sha256"][name] for name in FILES}
        if SURROUNDINGS in described["sha256"]:
            recorded[SURROUNDINGS] = described["sha256"][SURROUNDINGS]
        for name in recorded:
            verify_checksum(folder / name, recorded[name])
        around = PointMemory.load_ply(folder / SURROUNDINGS) if SURROUNDINGS in recorded else None
        return _state(described, read_tensors(folder / "state.safetensors"), PointMemory.load_ply(folder / "memory.ply"), around)
    except (KeyError, TypeError, ValueError) as error:  # ValueError: also what JSON, PLY and checksums raise
        where = "" if str(folder) in str(error) else f"{folder / 'world.json'}: "
        raise ValueError(f"the saved world is damaged: {where}{error}. Restore the folder from a copy") from error


def _exchange(new: Path, folder: Path) -> None:
    """Put `new` where `folder` is; the old one goes only when the new one is in place."""
    if not folder.exists():
        os.replace(new, folder)
        return
    old = new.with_name(f"{new.name}-old")
    os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old)


def _tensors(state: WorldState) -> dict[str, torch.Tensor]:
    tensors = {name: getattr(state, name) for name in _PLAIN}
    tensors["K"] = state.camera.K
    if state.T_level_world is not None:
        tensors["T_level_world"] = state.T_level_world
    for name in _PROJECTION:
        tensors[f"projection.{name}"] = getattr(state.frames_projection, name)
    if state.entities is not None:
        for name in _ENTITIES:
            tensors[f"entities.{name}"] = getattr(state.entities, name)
    for keyframe in state.keyframes.keyframes:
        for name in ("frame", "T_world_camera", "visible"):
            tensors[f"keyframe.{keyframe.id}.{name}"] = getattr(keyframe, name)
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def _state(described: dict, tensors: dict[str, torch.Tensor], memory: PointMemory, surroundings: PointMemory | None) -> WorldState:
    keyframes = tuple(
        Keyframe(i, *(tensors[f"keyframe.{i}.{name}"] for name in ("frame", "T_world_camera", "visible")))
        for i in described["keyframe_ids"]
    )
    bounded = PointMemory(
        memory.voxel_size, memory.keys, memory.positions, memory.colors, memory.confidence, memory.last_seen, int(described["max_points"])
    )
    return WorldState(
        camera=Camera(tensors["K"], int(described["width"]), int(described["height"])),
        memory=bounded,
        keyframes=KeyframeBank(keyframes, int(described["max_keyframes"]), int(described["next_keyframe"])),
        frames_projection=Projection(*(tensors[f"projection.{name}"] for name in _PROJECTION)),
        prompt=str(described["prompt"]),
        clip_count=int(described["clip_count"]),
        frame_count=int(described["frame_count"]),
        entities=Entities(*(tensors[f"entities.{name}"] for name in _ENTITIES)) if "entities.past" in tensors else None,
        surroundings=surroundings,
        T_level_world=tensors.get("T_level_world"),
        **{name: tensors[name] for name in _PLAIN},
    )
