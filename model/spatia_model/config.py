"""Presets: what a tier's numbers are. One dataclass per thing, a bad combination is refused with the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spatia_model.geometry.camera import camera_from_fov
from spatia_model.types import Camera

FRAME_RATE = 8.0  # frames per second of procedural worlds and of the embedded tier


def looked_at(count: int, every: int) -> list[int]:
    """Rows of `count` frames at a stride, counted from the last, which is among them: what is perceived or mapped of a clip."""
    return list(range(count - 1, -1, -every))[::-1]


# The release's, in its own words: cuts, worst quality, artefacts, text, deformed bodies, dull or odd light and colour.
NEGATIVE_PROMPT = (
    "画面切换，画面切出，镜头切换，镜头渐黑，镜头渐亮，最差质量, 节目横幅, 低质量, 正常质量, JPEG压缩残留, 噪点, 模糊,"
    " 细节缺失, 马赛克, 水印, 文字, 签名, 商标, 丑陋的, 畸形的, 毁容的, 解剖学错误, 形态糟糕, 多余的肢体, 残缺的肢体,"
    " 融合的手指, 画得不好的手, 画得不好的脸, 僵硬的表情, 杂乱的构图, 不协调的元素, 空旷的画面, 透视错误, 比例失调,"
    " 变形的物体, 融合的物体, 物体穿模, 漂浮的物体, 平淡的光线, 不自然的光源, 单调的色彩, 奇怪的颜色, 刺眼的颜色, 画面发灰"
)


@dataclass(frozen=True)
class MiniConfig:
    """The embedded tier's window and memory: `history_frames` known frames, then `frames_per_clip` new ones.

    Args:
        image_size: side of the square frames, pixels.
        fov_x: horizontal field of view, radians, assumed of pictures that come without intrinsics.
        frames_per_clip: new frames per step, a multiple of 4.
        history_frames: frames that the generator is shown, 1 + 4k.
        max_references: K, the most reference frames shown (paper: 7; MINI.md: 3).
        reference_threshold: epsilon, least IoU of visible surface for a reference.
        voxel_size: metres, the map's finest cell.
        steps: sampler steps.
        guidance: text guidance scale; 1 is none and halves the work.
        motion_gap: frames between a frame and the earlier one that perception compares it with.
        surroundings: where the memory is empty, show the generator the first picture mirrored (`memory/surroundings.py`).
    """

    image_size: int = 128
    fov_x: float = math.radians(75)
    frames_per_clip: int = 8
    history_frames: int = 5
    max_references: int = 3
    reference_threshold: float = 0.04
    voxel_size: float = 0.03
    steps: int = 2
    guidance: float = 1.0
    motion_gap: int = 2
    surroundings: bool = False

    def __post_init__(self) -> None:
        if self.frames_per_clip < 4 or self.frames_per_clip % 4:
            raise ValueError(f"frames_per_clip must be a positive multiple of 4 (the VAE's temporal factor), got {self.frames_per_clip}")
        if self.history_frames < 1 or (self.history_frames - 1) % 4:
            raise ValueError(f"history_frames must be 1 + 4k, got {self.history_frames}")
        if not 0 < self.fov_x < math.pi:
            raise ValueError(f"fov_x is an angle in radians between 0 and pi, got {self.fov_x}")
        if self.motion_gap < 1 or self.motion_gap >= self.history_frames:
            raise ValueError(f"motion_gap must be between 1 and history_frames - 1, got {self.motion_gap}")
        if self.steps < 1 or self.steps > 1000:
            raise ValueError(f"steps must be between 1 and 1000, got {self.steps}")

    @property
    def window(self) -> int:
        return self.history_frames + self.frames_per_clip

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of the frames."""
        return self.image_size, self.image_size


def mini_camera(config: MiniConfig) -> Camera:
    """The camera of the embedded tier's square frames."""
    return camera_from_fov(config.fov_x, config.image_size, config.image_size)


MATCHINGS = ("hungarian", "iou")


@dataclass(frozen=True)
class ReleaseConfig:
    """The 5B's loop in numbers. The defaults are the released inference code's; see `PAPER` for where the paper differs.

    Args:
        width, height: of the frames, pixels; multiples of 32 (the VAE's 16 times the patch).
        frame_rate: frames per second.
        first_frames: of the first clip, the picture among them: 1 + 4k.
        window_frames: of every later clip, history among them: 1 + 4k.
        history_frames: last frames shown again to a later clip: 1 + 4k.
        fov_x: horizontal field of view, radians, of pictures without intrinsics.
        matching: how references are chosen. "hungarian": every frame of the window at `target_rate` gets a past frame of its own, so
            that the points seen by both are most in sum; "iou": the K past frames whose surface overlaps most with the window's.
        max_references: K, the most reference frames; 0: none.
        reference_threshold: epsilon of "iou".
        target_rate, candidate_rate: frames per second of the window and of the past that are matched.
        map_rate: frames per second that enter the map.
        max_keyframes: candidates kept; the release keeps all.
        voxel_size: metres, the map's finest cell. max_points: its bound.
        render_voxel, render_voxel_step: metres; points are averaged over cells of the first plus the second per clip before they are drawn.
        point_radius: of a drawn point, in half image heights (the shorter side counts).
        points_per_pixel: nearest points that are composited.
        steps, guidance, shift, control_scale: the sampler's.
        lora_first, lora_later: share of the LoRA in the first clip and after it.
        prompt_suffix, negative_prompt: added to every prompt; what guidance leads away from.
        same_noise: every clip starts from the same noise, drawn from the world's seed.
        truncate: decoded colours are cut to whole numbers, as the release does; False rounds them.
    """

    width: int = 1248
    height: int = 704
    frame_rate: float = 24.0
    first_frames: int = 121
    window_frames: int = 81
    history_frames: int = 9
    fov_x: float = math.radians(60)
    matching: str = "hungarian"
    max_references: int = 7
    reference_threshold: float = 0.04
    target_rate: float = 2.0
    candidate_rate: float = 6.0
    map_rate: float = 4.0
    max_keyframes: int = 512
    voxel_size: float = 0.01
    max_points: int = 4_000_000
    render_voxel: float = 0.01
    render_voxel_step: float = 0.005
    point_radius: float = 0.01
    points_per_pixel: int = 5
    steps: int = 40
    guidance: float = 3.5
    shift: float = 5.0
    control_scale: float = 1.0
    lora_first: float = 0.0
    lora_later: float = 1.0
    prompt_suffix: str = " 4K, realistic, high quality, HDR."
    negative_prompt: str = NEGATIVE_PROMPT
    same_noise: bool = True
    truncate: bool = True

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            if getattr(self, name) < 32 or getattr(self, name) % 32:
                raise ValueError(f"{name} must be a multiple of 32 (the VAE's 16 times the patch of 2), got {getattr(self, name)}")
        for name in ("first_frames", "window_frames", "history_frames"):
            if getattr(self, name) < 1 or (getattr(self, name) - 1) % 4:
                raise ValueError(f"{name} must be 1 + 4k, got {getattr(self, name)}")
        if self.history_frames >= self.window_frames or self.first_frames < 5:
            raise ValueError(
                f"a clip must hold new frames: window_frames {self.window_frames} must exceed history_frames {self.history_frames}, "
                f"first_frames must be 5 or more, got {self.first_frames}"
            )
        if self.matching not in MATCHINGS:
            raise ValueError(f"matching = {self.matching!r}; expected one of {MATCHINGS}")
        for name in ("target_rate", "candidate_rate", "map_rate"):
            if not 0 < getattr(self, name) <= self.frame_rate:
                raise ValueError(f"{name} must be above 0 and at most frame_rate {self.frame_rate}, got {getattr(self, name)}")
        for name in ("voxel_size", "render_voxel", "point_radius", "frame_rate", "shift"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 < self.fov_x < math.pi:
            raise ValueError(f"fov_x is an angle in radians between 0 and pi, got {self.fov_x}")
        if self.steps < 1 or self.steps > 1000:
            raise ValueError(f"steps must be between 1 and 1000, got {self.steps}")
        if self.max_references < 0 or self.max_keyframes < 2 or self.points_per_pixel < 1:
            raise ValueError("max_references must be 0 or more, max_keyframes 2 or more, points_per_pixel 1 or more")

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of the frames."""
        return self.height, self.width

    @property
    def frames_per_clip(self) -> int:
        """New frames of a later clip, and of one step of an env."""
        return self.window_frames - self.history_frames

    def stride(self, rate: float) -> int:
        """Every how many frames one is taken at `rate` frames per second."""
        return max(1, round(self.frame_rate / rate))

    def clip_lengths(self, frames: int) -> list[int]:
        """New frames of each clip of a path of so many new poses (the picture's own not counted): the first clip is longer, the last may
        be shorter."""
        if frames < 1:
            return []
        lengths = [min(frames, self.first_frames - 1)]
        while (left := frames - sum(lengths)) > 0:
            lengths.append(min(left, self.frames_per_clip))
        return lengths


RELEASE = ReleaseConfig()
# Paper, section 3: 81 frames in the first clip too, references by IoU, one network throughout. It names neither suffix nor negative prompt,
# so guidance leads away from the empty prompt.
PAPER = ReleaseConfig(
    first_frames=81,
    matching="iou",
    render_voxel_step=0.0,
    lora_first=1.0,
    prompt_suffix="",
    negative_prompt="",
    same_noise=False,
    truncate=False,
)
PRESETS = {"release": RELEASE, "paper": PAPER}


def preset(name: str) -> ReleaseConfig:
    """The loop's numbers by name. ValueError for another."""
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; choose one of {sorted(PRESETS)}")
    return PRESETS[name]


def release_camera(config: ReleaseConfig) -> Camera:
    """The camera assumed of a picture that comes without intrinsics."""
    return camera_from_fov(config.fov_x, config.width, config.height)
