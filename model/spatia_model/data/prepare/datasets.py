"""RealEstate10K, SpatialVID(-HQ) and any folder of videos as footage. The users bring the files; nothing is downloaded.

Layouts (docs/data.md has them in full):

* RealEstate10K: `*.txt`, line 1 a URL, then 19 columns: timestamp in microseconds, fx fy cx cy normalised, two unused, 3x4 world-to-camera.
  Frames: FRAMES/<id>/<timestamp>.png, or FRAMES/<id>.mp4 that begins with the clip, or FRAMES/<YouTube id>.mp4, the whole video.
* SpatialVID: `annotations|videos|depths/group_XXXX/UUID`, poses as tx ty tz qx qy qz qw, world to camera.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spatia_model.data.prepare.footage import PICTURES, VIDEOS, BadFootage, Footage, PictureFiles, Reader, VideoFile
from spatia_model.geometry import se3

LICENCES = {"realestate10k": "camera files CC BY 4.0; frames as their videos' owners say", "spatialvid": "CC BY-NC-SA 4.0"}


def listed(folder: Path, suffixes: Sequence[str], what: str, mend: str) -> list[Path]:
    """Files of a folder and those below, sorted. ValueError when there is none."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give the folder of {what}")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and not path.name.startswith("."))
    if not found:
        raise ValueError(f"{folder} holds no {what} ({', '.join(suffixes)}): {mend}")
    return found


class RealEstate10K:
    """Camera files of `cameras`, with frames or videos from `frames`."""

    def __init__(self, cameras: Path, frames: Path):
        self.frames = frames
        paths = listed(cameras, (".txt",), "camera files", "give the folder with RealEstate10K's train or test camera files")
        if not frames.is_dir():
            raise ValueError(f"{frames}: no such folder; RealEstate10K has no frames of its own: give yours with --frames")
        self.files = {path.stem: path for path in paths}

    def names(self) -> list[str]:
        return sorted(self.files)

    def open(self, name: str) -> Footage:
        url, rows = read_realestate(self.files[name])
        times = rows[:, 0] / 1e6
        read, source = self._frames(name, url, rows[:, 0])
        return Footage(
            name,
            torch.from_numpy(times - times[0]),
            read,
            se3.inverse(_homogeneous(rows[:, 7:].reshape(-1, 3, 4))),
            torch.from_numpy(rows[:, 1:5].copy()),
            provenance={"source": "realestate10k", "url": url, "licence": LICENCES["realestate10k"], **source},
        )

    def _frames(self, name: str, url: str, stamps: np.ndarray) -> tuple[Reader, dict[str, Any]]:
        folder = self.frames / name
        if folder.is_dir():
            by_stamp = {path.stem: path for path in folder.iterdir() if path.suffix.lower() in PICTURES}
            missing = [str(int(s)) for s in stamps if str(int(s)) not in by_stamp]
            if missing:
                raise BadFootage(f"{folder.name} lacks {len(missing)} of {len(stamps)} frames, such as {missing[0]}.png")
            return PictureFiles([by_stamp[str(int(s))] for s in stamps]), {"frames": "pictures"}
        match = re.search(r"(?:v=|youtu\.be/)([\w-]{6,})", url)
        for stem, first in ((name, stamps[0]), (match[1] if match else "", 0.0)):
            for suffix in VIDEOS if stem else ():
                path = self.frames / f"{stem}{suffix}"
                if path.is_file():
                    video = VideoFile(path)
                    numbers = np.rint((stamps - first) / 1e6 * video.fps).astype(int)
                    if len(set(numbers.tolist())) < len(numbers):
                        raise BadFootage(f"{path.name} has {video.fps:g} frames a second, fewer than the camera file's poses")
                    return _Picked(video, numbers.tolist()), {"frames": "video", "fps": video.fps}
        raise BadFootage(f"no frames: expected {self.frames}/{name}/ or {name}.mp4{f' or {match[1]}.mp4' if match else ''}")


class _Picked:
    """Frame numbers translated before reading."""

    def __init__(self, read: Reader, numbers: list[int]):
        self.inner, self.numbers = read, numbers

    def __call__(self, numbers: Sequence[int]) -> torch.Tensor:
        return self.inner([self.numbers[i] for i in numbers])


def read_realestate(path: Path) -> tuple[str, np.ndarray]:
    """URL and rows (N, 19) float64 of a camera file. BadFootage names the line that is wrong."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadFootage(f"{path.name} is no camera file: {error}") from error
    if len(lines) < 3:
        raise BadFootage(f"{path.name} holds {max(0, len(lines) - 1)} poses: missing, or the file is cut short")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        columns = line.split()
        if len(columns) != 19:
            raise BadFootage(f"{path.name} line {number} has {len(columns)} columns; expected 19")
        try:
            rows.append([float(value) for value in columns])
        except ValueError as error:
            raise BadFootage(f"{path.name} line {number}: {error}") from error
    return lines[0].strip(), np.array(rows)


def _homogeneous(matrices: np.ndarray) -> torch.Tensor:
    """(N, 3, 4) to (N, 4, 4), rotations made exact where they are nearly so."""
    out = torch.eye(4, dtype=torch.float64).repeat(len(matrices), 1, 1)
    out[:, :3] = torch.from_numpy(matrices)
    R = out[:, :3, :3]
    near = torch.isfinite(out).all() and (R @ R.transpose(1, 2) - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-2
    return se3.orthonormalise(out) if near else out


class SpatialVID:
    """`root`/annotations|videos|depths/group_XXXX/UUID."""

    def __init__(self, root: Path):
        self.root = root
        if not (root / "annotations").is_dir():
            raise ValueError(f"{root} holds no annotations/ folder: give the folder that SpatialVID's groups were unpacked in")
        found = sorted((root / "annotations").glob("group_*/*/poses.npy"))
        bare = sorted(path for path in (root / "annotations").glob("group_*/*") if path.is_dir())
        self.folders = {path.name: path for path in (*bare, *(path.parent for path in found))}
        if not self.folders:
            raise ValueError(f"{root}/annotations holds no group_XXXX/UUID folders: unpack the groups first")

    def names(self) -> list[str]:
        return sorted(self.folders)

    def open(self, name: str) -> Footage:
        folder = self.folders[name]
        group = folder.parent.name
        video = VideoFile(self.root / "videos" / group / f"{name}.mp4")
        poses, intrinsics = _array(folder / "poses.npy", 7), _array(folder / "intrinsics.npy", 4)
        if len(poses) != len(intrinsics):
            raise BadFootage(f"{len(poses)} poses but {len(intrinsics)} intrinsics")
        frames = self._frame_numbers(folder / "indexes.txt", len(poses), video)
        if (np.diff(frames) <= 0).any():
            raise BadFootage("indexes.txt: video frames do not increase")
        T = se3.inverse(_from_quaternions(poses))
        dense = np.arange(frames[0], frames[-1] + 1)
        captions, prompt = read_caption(folder / "caption.json")
        depths = self.root / "depths" / group / f"{name}.zip"
        masks = folder / "dyn_masks.npz"
        return Footage(
            name,
            torch.from_numpy((dense - dense[0]) / video.fps),
            _Picked(video, dense.tolist()),
            interpolate_poses(T, frames, dense),
            torch.from_numpy(np.stack([np.interp(dense, frames, intrinsics[:, c]) for c in range(4)], 1)),
            _Depths(depths, frames - dense[0]) if depths.is_file() else None,
            _Masks(masks, frames - dense[0]) if masks.is_file() else None,
            ((0.0, captions),) if captions else (),
            prompt,
            depth_frames=tuple((frames - dense[0]).tolist()) if depths.is_file() else None,
            provenance={
                "source": "spatialvid",
                "group": group,
                "licence": LICENCES["spatialvid"],
                "annotated_frames": len(frames),
                "first_frame": int(dense[0]),
            },
        )

    @staticmethod
    def _frame_numbers(path: Path, count: int, video: VideoFile) -> np.ndarray:
        """Video frame of each pose: column 2 of indexes.txt; without it, evenly over the video."""
        if not path.is_file():
            return np.unique(np.rint(np.linspace(0, max(1, round(video.duration * video.fps)) - 1, count)).astype(int))
        rows = [line.replace(",", " ").split() for line in path.read_text().splitlines() if line.strip()]
        try:
            numbers = np.array([int(float(row[1])) for row in rows])
        except (IndexError, ValueError) as error:
            raise BadFootage(f"indexes.txt: expected two columns of numbers, the second the video frame ({error})") from error
        if len(numbers) != count:
            raise BadFootage(f"indexes.txt names {len(numbers)} frames for {count} poses")
        return numbers


def _array(path: Path, columns: int) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadFootage(f"{path.name} is missing or no array: {error}") from error
    if values.ndim != 2 or values.shape[1] != columns:
        raise BadFootage(f"{path.name} is {values.shape}; expected (n, {columns})")
    if len(values) < 2 or not np.isfinite(values).all():
        raise BadFootage(f"{path.name} holds {len(values)} rows, or numbers that are not finite")
    return values.astype(np.float64)


def _from_quaternions(rows: np.ndarray) -> torch.Tensor:
    """tx ty tz qx qy qz qw (n, 7) to (n, 4, 4)."""
    from scipy.spatial.transform import Rotation

    norms = np.linalg.norm(rows[:, 3:], axis=1)
    if (np.abs(norms - 1) > 0.05).any():
        raise BadFootage(
            f"poses.npy: the quaternion of row {int(np.abs(norms - 1).argmax())} has length {norms[np.abs(norms - 1).argmax()]:.3g}, not 1"
        )
    out = torch.eye(4, dtype=torch.float64).repeat(len(rows), 1, 1)
    out[:, :3, :3] = torch.from_numpy(Rotation.from_quat(rows[:, 3:]).as_matrix())
    out[:, :3, 3] = torch.from_numpy(rows[:, :3])
    return out


def interpolate_poses(T: torch.Tensor, at: np.ndarray, wanted: np.ndarray) -> torch.Tensor:
    """Poses (n, 4, 4) at times `at` to those at `wanted`, along constant velocity between neighbours."""
    after = np.clip(np.searchsorted(at, wanted, side="right"), 1, len(at) - 1)
    share = torch.from_numpy((wanted - at[after - 1]) / (at[after] - at[after - 1])).clamp(0, 1)
    start = T[after - 1]
    return start @ se3.exp(se3.log(se3.inverse(start) @ T[after]) * share[:, None])


class _Masks:
    """dyn_masks.npz: CSR matrices f_{i}_data / indices / indptr and `shape`; frames between are told by the nearest."""

    def __init__(self, path: Path, frames: np.ndarray):
        self.path, self.frames = path, frames

    def __call__(self, numbers: Sequence[int]) -> torch.Tensor:
        from scipy.sparse import csr_matrix

        try:
            with np.load(self.path, allow_pickle=False) as file:
                shape = tuple(int(v) for v in file["shape"][-2:])
                out = []
                for number in numbers:
                    i = int(np.abs(self.frames - number).argmin())
                    parts = tuple(file[f"f_{i}_{part}"] for part in ("data", "indices", "indptr"))
                    if len(parts[2]) != shape[0] + 1:
                        raise BadFootage(
                            f"dyn_masks.npz: mask {i} has {len(parts[2]) - 1} rows, shape says {shape[0]}: a mask of another size"
                        )
                    out.append(csr_matrix(parts, shape=shape).toarray() > 0)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            if isinstance(error, BadFootage):
                raise
            raise BadFootage(f"dyn_masks.npz cannot be read: {error}") from error
        return torch.from_numpy(np.stack(out)).float()


class _Depths:
    """Zip of EXR pictures whose Z is inverse depth in half floats; 0 where a frame between has none."""

    def __init__(self, path: Path, frames: np.ndarray):
        self.path, self.frames = path, frames

    def __call__(self, numbers: Sequence[int]) -> torch.Tensor:
        try:
            import OpenEXR
        except ImportError as error:
            raise ImportError(
                "SpatialVID's depths need the package OpenEXR: pip install OpenEXR (or leave the depths/ folder out)"
            ) from error
        out = []
        try:
            with zipfile.ZipFile(self.path) as archive:
                names = sorted(name for name in archive.namelist() if name.lower().endswith(".exr"))
                if len(names) != len(self.frames):
                    raise BadFootage(f"{self.path.name} holds {len(names)} depth maps for {len(self.frames)} poses")
                for number in numbers:
                    i = int(np.abs(self.frames - number).argmin())
                    with OpenEXR.File(io.BytesIO(archive.read(names[i])), separate_channels=True) as file:
                        inverse = np.asarray(file.channels()["Z"].pixels, np.float32)
                    exact = self.frames[i] == number
                    out.append(np.where((inverse > 1e-6) & exact, 1 / np.maximum(inverse, 1e-6), 0))
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise BadFootage(f"{self.path.name} cannot be read: {error}") from error
        return torch.from_numpy(np.stack(out).astype(np.float32))


def read_caption(path: Path) -> tuple[str, str]:
    """What happens, and what the place is like, from a caption.json whose keys differ between releases. Empty without a file."""
    if not path.is_file():
        return "", ""
    try:
        told = json.loads(path.read_text())
    except ValueError as error:
        raise BadFootage(f"caption.json is no JSON: {error}") from error
    flat: dict[str, str] = {}

    def gather(value: Any, key: str = "") -> None:
        if isinstance(value, dict):
            for k, v in value.items():
                gather(v, str(k))
        elif isinstance(value, str):
            flat.setdefault(re.sub(r"[^a-z]", "", key.lower()), value.strip())

    gather(told)
    happens = next(
        (flat[k] for k in ("optcaption", "optimizedcaption", "shotimmersion", "scenesummary", "caption", "summary") if flat.get(k)), ""
    )
    place = next((flat[k] for k in ("scenedescription", "scene", "scenetype") if flat.get(k)), "")
    return happens or max(flat.values(), key=len, default=""), place


class Videos:
    """Any folder of videos; poses are estimated. `captions`: JSON of file name (with or without suffix) to text."""

    def __init__(self, root: Path, captions: Path | None = None):
        self.files = {path.relative_to(root).with_suffix("").as_posix().replace("/", "__"): path for path in _videos(root)}
        try:
            told = json.loads(captions.read_text()) if captions else {}
        except (OSError, ValueError) as error:
            raise ValueError(f"--captions {captions}: expected a JSON object of file name to text ({error})") from error
        self.captions = {Path(k).with_suffix("").as_posix().replace("/", "__"): str(v) for k, v in told.items()}

    def names(self) -> list[str]:
        return sorted(self.files)

    def open(self, name: str) -> Footage:
        video = VideoFile(self.files[name])
        count = video.count()
        expected = video.duration * video.fps
        if math.isfinite(expected) and count < 0.9 * expected - 1:
            raise BadFootage(f"{video.path.name} is truncated: {count} of about {expected:.0f} frames can be decoded")
        text = self.captions.get(name, "")
        return Footage(
            name,
            torch.arange(count, dtype=torch.float64) / video.fps,
            video,
            captions=((0.0, text),) if text else (),
            provenance={"source": "videos", "file": video.path.name, "fps": video.fps},
        )


def _videos(root: Path) -> list[Path]:
    return listed(root, VIDEOS, "videos", "give a folder with video files")
