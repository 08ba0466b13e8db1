"""Small files of exactly the layouts that `prepare` reads, written by the tests themselves."""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from spatia_model.geometry import se3
from spatia_model.geometry.camera import camera_from_fov, pixel_rays
from tests.spatia_model.tiny import picture

FOV = math.radians(75)


def wall(poses: torch.Tensor, height: int, width: int, distance: float = 3.0, texture_seed: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """A textured wall at z = `distance` with a nearer half on the left: frames (T, H, W, 3) uint8 and depth (T, H, W), exact."""
    camera = camera_from_fov(FOV, width, height)
    rays = pixel_rays(camera).double().reshape(-1, 3)
    texture = torch.nn.functional.avg_pool2d(
        torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(texture_seed)) * 255, 5, 1, 2
    )[0]
    texture = ((texture - texture.mean()) * 4 + 128).clamp(0, 255).permute(1, 2, 0)
    frames, depths = [], []
    for pose in poses:
        directions, origin = rays @ pose[:3, :3].T, pose[:3, 3]
        s_far, s_near = ((z - origin[2]) / directions[:, 2] for z in (distance, 0.6 * distance))
        near_hit = origin + s_near[:, None] * directions
        on_near = near_hit[:, 0] < -0.3 * distance * 0.6
        s = torch.where(on_near, s_near, s_far)
        hit = origin + s[:, None] * directions
        uv = (hit[:, :2] / distance * 24 + 64 + 30 * on_near[:, None]).remainder(127)
        frames.append(texture[uv[:, 1].long(), uv[:, 0].long()].reshape(height, width, 3).round().to(torch.uint8))
        depths.append(s.float().reshape(height, width))  # rays have z = 1 in the camera's frame, so s is z-depth
    return torch.stack(frames), torch.stack(depths)


def path(frames: int, step: float = 0.03) -> torch.Tensor:
    """T_world_camera (T, 4, 4): sideways with a little turn."""
    poses = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    for i in range(frames):
        angle = 0.004 * i
        poses[i, :3, :3] = torch.tensor(
            [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]], dtype=torch.float64
        )
        poses[i, 0, 3] = step * i
    return poses


def realestate_text(
    poses: torch.Tensor, unit: float = 1.0, url: str = "https://www.youtube.com/watch?v=abc_DEF-123", fps: float = 8.0
) -> str:
    """A camera file whose translations are divided by `unit`: the scale is arbitrary."""
    f = 0.5 / math.tan(FOV / 2)
    lines = [url]
    for i, pose in enumerate(poses):
        scaled = pose.clone()
        scaled[:3, 3] /= unit
        matrix = se3.inverse(scaled)[:3].reshape(-1).tolist()
        lines.append(" ".join([str(1_000_000 + round(i * 1e6 / fps)), *map(repr, [f, f, 0.5, 0.5, 0.0, 0.0, *matrix])]))
    return "\n".join(lines) + "\n"


def realestate(folder: Path, name: str = "0f1e2d", frames: int = 17, size: int = 32, unit: float = 1.0) -> tuple[Path, Path]:
    """(cameras, frames) with one clip more, its frames as pictures."""
    cameras, pictures = folder / "cameras", folder / "frames"
    cameras.mkdir(parents=True, exist_ok=True)
    (pictures / name).mkdir(parents=True, exist_ok=True)
    poses = path(frames)
    rgb, _ = wall(poses, size, size)
    text = realestate_text(poses, unit)
    (cameras / f"{name}.txt").write_text(text)
    for line, frame in zip(text.splitlines()[1:], rgb, strict=True):
        Image.fromarray(frame.numpy()).save(pictures / name / f"{line.split()[0]}.png")
    return cameras, pictures


def video(file: Path, frames: torch.Tensor, fps: float = 8.0) -> Path:
    import imageio.v2 as imageio

    file.parent.mkdir(parents=True, exist_ok=True)
    with imageio.get_writer(str(file), fps=fps, codec="libx264", quality=9, macro_block_size=2, pixelformat="yuv420p") as writer:
        for frame in frames:
            writer.append_data(frame.numpy())
    return file


def spatialvid(root: Path, name: str = "aaaa-bbbb", frames: int = 33, every: int = 4, size: int = 32, depth: bool = False) -> Path:
    """One annotated video more: poses of every n-th frame, the mover a block that wanders."""
    from scipy.sparse import csr_matrix
    from scipy.spatial.transform import Rotation

    folder = root / "annotations" / "group_0001" / name
    folder.mkdir(parents=True, exist_ok=True)
    poses = path(frames)
    rgb, depths = wall(poses, size, size)
    video(root / "videos" / "group_0001" / f"{name}.mp4", rgb)
    annotated = list(range(0, frames, every))
    w2c = se3.inverse(poses[annotated])
    rows = np.concatenate([w2c[:, :3, 3].numpy(), Rotation.from_matrix(w2c[:, :3, :3].numpy()).as_quat()], 1)
    np.save(folder / "poses.npy", rows)
    f = 0.5 / math.tan(FOV / 2)
    np.save(folder / "intrinsics.npy", np.tile([f, f, 0.5, 0.5], (len(annotated), 1)))
    (folder / "indexes.txt").write_text("".join(f"{i} {n}\n" for i, n in enumerate(annotated)))
    masks: dict[str, np.ndarray] = {"shape": np.array([size // 2, size // 2])}
    for i in range(len(annotated)):
        mask = np.zeros((size // 2, size // 2), bool)
        mask[4:8, i % 8 : i % 8 + 4] = True
        sparse = csr_matrix(mask)
        masks |= {f"f_{i}_data": sparse.data, f"f_{i}_indices": sparse.indices, f"f_{i}_indptr": sparse.indptr}
    np.savez_compressed(folder / "dyn_masks.npz", **masks)
    (folder / "caption.json").write_text(json.dumps({"SceneSummary": "a camera passes a wall", "SceneDescription": "a wall outdoors"}))
    if depth:
        import OpenEXR

        target = root / "depths" / "group_0001" / f"{name}.zip"
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(target, "w") as archive:
            for i, n in enumerate(annotated):
                place = root / "frame.exr"
                with OpenEXR.File({}, {"Z": (1 / depths[n].numpy()).astype(np.float16)}) as file:
                    file.write(str(place))
                archive.writestr(f"{i:05d}.exr", place.read_bytes())
                place.unlink()
    return root


def minari(root: Path, index: int = 0, steps: int = 3, size: int = 32, keys: tuple[str, ...] = ("frames", "poses", "K")) -> Path:
    """An episode as the env's Minari writer leaves it: the first row of the infos is the reset's."""
    import h5py

    folder = root / "data" / "episodes"
    folder.mkdir(parents=True, exist_ok=True)
    poses = path(1 + 8 * steps)
    rgb, _ = wall(poses, size, size)
    camera = camera_from_fov(FOV, size, size)
    with h5py.File(folder / f"episode_{index:08d}.hdf5", "w") as file:
        infos = file.create_group("episode/infos")
        first = torch.cat([rgb[:1].repeat(8, 1, 1, 1), rgb[1:]])
        content = {
            "frames": first.reshape(steps + 1, 8, size, size, 3).numpy(),
            "poses": torch.cat([poses[:1].repeat(8, 1, 1), poses[1:]]).reshape(steps + 1, 8, 4, 4).numpy(),
            "K": camera.K.numpy()[None].repeat(steps + 1, 0),
        }
        for key in keys:
            infos.create_dataset(key, data=content[key])
        actions = file.create_group("episode/actions")
        actions.create_dataset("camera", data=np.zeros((steps, 6), np.float32))
        actions.create_dataset("text", data=[f"step {i}" for i in range(steps)], dtype=h5py.string_dtype("utf-8"))
    return root


def png(frame: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame.numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


__all__ = ["FOV", "minari", "path", "picture", "png", "realestate", "realestate_text", "spatialvid", "video", "wall"]
