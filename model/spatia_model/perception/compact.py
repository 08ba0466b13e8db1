"""The embedded perceiver: one small U-Net for depth, confidence and motion.

It sees the frame, the memory's rendering at the same pose (colour, log depth, mask), an earlier frame, and where each
ray points, which tells floors from ceilings. Where the memory covers a pixel the network mostly corrects its depth, so
estimates stay in the memory's scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from spatia_model.geometry import se3
from spatia_model.geometry.camera import pixel_rays
from spatia_model.geometry.neighbours import highest_near, opened
from spatia_model.geometry.planes import continued
from spatia_model.perception.composed import looked_at, nearest
from spatia_model.types import Camera, Perception, Projection

TYPICAL_DEPTH = 3.0  # metres, the network's guess before it has looked
MAX_DEPTH = 60.0
LOOKS = ((0, 0, 1.0), (1, 1, 0.85))  # at a first picture: pixels down and to the right that it is moved by, and its exposure
PART = 0.75  # of its sides: windows in its corners, which are looked at enlarged
SUSPICION = 0.6  # log odds added where only looks tell: a thing overlooked can never move, one taken wrongly merely may
PITCHES = tuple(range(-40, 26, 5))  # degrees up that a picture's camera may have been held at, where nobody says
USUAL_PITCH, PITCH_SPREAD = -4.0, 12.0  # degrees: how cameras are held
PITCH_TELLS = 10.0  # by how much the network's doubt outweighs that
CORE_HEAD = 32  # channels of each head of the core's attention
CONFIDENT_ERROR = 0.1  # "confident" means a relative depth error below this
UNSURE = 0.3  # confidence below which depth is told cautiously; a map takes none of that by default, the embedded model's does (`MAPPING`)
MOST_DOUBT = 0.7  # scale of a log depth's error beyond which it is told no more cautiously
BESIDE = 2  # pixels


@dataclass(frozen=True)
class CompactPerceptionConfig:
    widths: tuple[int, ...] = (24, 40, 64, 96)
    looks: int | tuple[int, ...] = (2, 7)  # attention blocks at the last scales, the coarsest last; n, in earlier folders, is (n, 0)
    every: int = 2  # look at every n-th frame of a clip: what the map fuses
    extends: bool = False  # the memory's surfaces are also suggested beyond where the memory ends
    by_looks: bool = False  # of a single picture, call dynamic what by its looks may move; else nothing, for want of evidence
    core: tuple[int, int] = (0, 0)  # width and number of further attention blocks at the coarsest scale, at a width of their own
    twice: bool = False  # two convolutional blocks instead of one at each scale on the way up
    first: CompactPerceptionConfig | None = None  # a network of its own for first pictures, of which there is time to make more

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "core", tuple(self.core))
        if isinstance(self.first, dict):  # as config.json says it
            object.__setattr__(self, "first", CompactPerceptionConfig(**self.first))
        if self.first is not None and self.first.first is not None:
            raise ValueError("the network for first pictures has a network for first pictures: give first=None there")
        if len(self.core) != 2 or min(self.core) < 0 or self.core[0] % CORE_HEAD or bool(self.core[0]) != bool(self.core[1]):
            raise ValueError(f"core={self.core}: expected a width, in steps of {CORE_HEAD}, and a number of blocks, or (0, 0)")
        if len(self.widths) < 2:
            raise ValueError(f"perception needs at least two scales, got widths={self.widths}")
        looks = (self.looks, 0) if isinstance(self.looks, int) else tuple(self.looks)
        if len(looks) > len(self.widths) or min(looks, default=0) < 0:
            raise ValueError(f"looks={self.looks}: expected up to {len(self.widths)} numbers, for the last scales, none below 0")
        object.__setattr__(self, "looks", looks)
        if self.every < 1:
            raise ValueError(f"every = {self.every}; expected a whole number of at least 1: look at every n-th frame")


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-4)  # per pixel; without it training diverges
        return x + self.conv2(F.silu(self.conv1(y)))


class _Look(nn.Module):
    """Attention over the whole coarse picture: how far a wall is shows where it meets the floor, which may be anywhere."""

    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)
        self.wide, self.narrow = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)
        for conv in (self.out, self.narrow):
            nn.init.zeros_(conv.weight)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        x = x.contiguous(memory_format=torch.channels_last)  # so that each head's channels lie together: a fifth faster
        y = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-4)
        q, k, v = self.qkv(y).view(n, 3, self.heads, c // self.heads, h * w).transpose(-1, -2).unbind(1)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(n, c, h, w)
        x = x + self.out(seen)
        y = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-4)
        return x + self.narrow(F.silu(self.wide(y)))


class _Core(nn.Module):
    """More attention blocks, wide where pixels are few; what they find is added. It begins as nothing."""

    def __init__(self, width: int, inner: int, blocks: int):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)
        self.looks = nn.ModuleList(_Look(inner, inner // CORE_HEAD) for _ in range(blocks))
        nn.init.zeros_(self.leave.weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.enter(x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-4))
        for look in self.looks:
            y = look(y)
        return x + self.leave(y * torch.rsqrt(y.square().mean(1, keepdim=True) + 1e-4))


class CompactPerception(nn.Module):
    """U-Net over 2x2-unshuffled inputs; `forward` works on the stacked inputs, `perceive` on frames.

    Depth without memory comes as planes: a surface with normal n at distance d from the camera has inverse depth (n / d) . ray, so a wall
    or a floor is one constant for the network to say, sharp to its edges (local planar guidance; Lee et al. 2019). Rays are level: turned
    by the camera's pitch and roll but not its heading, so that a floor's n is always "up". Where the memory covers a pixel, a gate
    chooses between its depth, slightly corrected, and the plane; with `extends` also where one of its surfaces would go on.
    """

    CHANNELS = 14  # rgb 3, memory rgb 3, memory log depth, mask, earlier rgb 3, level ray 3
    OUTPUTS = 8  # plane 3, offset, correction, gate, log scale, dynamic logit

    def __init__(self, config: CompactPerceptionConfig | None = None):
        super().__init__()
        self.config = config = config or CompactPerceptionConfig()
        w = config.widths
        self.stem = nn.Conv2d(4 * self.CHANNELS, w[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(_Block(c) for c in w)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in zip(w, w[1:], strict=False))
        assert isinstance(config.looks, tuple)
        first = len(w) - len(config.looks)
        self._looks_at = [scale for scale, many in enumerate(config.looks, first) for _ in range(many)]
        self.looks = nn.ModuleList(_Look(w[scale]) for scale in self._looks_at)
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in zip(w, w[1:], strict=False))
        self.up_blocks = nn.ModuleList(_Block(c) for c in w[:-1])
        self.head = nn.Conv2d(w[0], self.OUTPUTS * 4, 3, padding=1)
        self.core = _Core(w[-1], *config.core) if config.core[1] else None
        self.more_up_blocks = nn.ModuleList(_Block(c) for c in w[:-1]) if config.twice else None
        self.first = CompactPerception(config.first) if config.first is not None else None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, 14, H, W) to log depth, log of its error scale, and dynamic logit, each (N, H, W). Without `first`: see `of_first`."""
        size = x.shape[-2:]
        step = 2 ** len(self.config.widths)
        pad = [-s % step for s in size]
        if any(pad):
            x = F.pad(x, (0, pad[1], 0, pad[0]), mode="replicate")
        prior, mask, rays = x[:, 6].float(), x[:, 7].float(), x[:, 11:14].float()
        y = self.stem(F.pixel_unshuffle(x, 2))
        skips = []
        for i, block in enumerate(self.down_blocks):
            y = block(y)
            for look, scale in zip(self.looks, self._looks_at, strict=True):
                y = look(y) if scale == i else y
            if i < len(self.down):
                skips.append(y)
                y = self.down[i](y)
        y = y if self.core is None else self.core(y)
        for i in reversed(range(len(self.up))):
            y = self.up_blocks[i](F.interpolate(self.up[i](y), scale_factor=2.0) + skips[i])
            y = y if self.more_up_blocks is None else self.more_up_blocks[i](y)
        out = F.pixel_shuffle(self.head(y), 2).float()
        inverse = (out[:, :3] * rays).sum(1) + out[:, 3] + 1 / TYPICAL_DEPTH
        inverse = F.softplus(inverse - 1 / MAX_DEPTH, beta=20.0) + 1 / MAX_DEPTH
        gate = (out[:, 5] + 2).sigmoid() * mask
        if self.config.extends:
            gate = gate + (out[:, 5] - 2).sigmoid() * (1 - mask) * (prior != 0)
        log_depth = gate * (prior + math.log(TYPICAL_DEPTH) + 0.3 * out[:, 4]) - (1 - gate) * inverse.log()
        return tuple(v[:, : size[0], : size[1]] for v in (log_depth, out[:, 6].clamp(-4, 2), out[:, 7]))  # type: ignore[return-value]

    @property
    def of_first(self) -> CompactPerception:
        """The network to show first pictures to, which have neither a memory nor an earlier frame."""
        return self if self.first is None else self.first

    def pitch_of(self, frame: torch.Tensor, camera: Camera) -> float:
        """How far up a picture's camera looked, in radians (a floor seen from above: negative), when nobody knows.

        The network is told which way every ray points, and looks sure when that fits what it sees: floors lie below the horizon. So the
        picture is looked at as if taken at one pitch after the other, and the least doubt wins, with a word for the usual ones.

        Args:
            frame: (1, H, W, 3) uint8.
            camera: its intrinsics.
        """
        tilts = torch.tensor(PITCHES, dtype=torch.float64).deg2rad()
        poses = se3.exp(F.pad(tilts[:, None], (3, 2)))
        x = stack_inputs(frame.expand(len(PITCHES), -1, -1, -1), poses, camera, None, None, self.config.extends)
        with torch.inference_mode():
            doubt = self.of_first(x.to(self.stem.weight))[1].float().mean((1, 2)).cpu()
        unusual = (torch.tensor(PITCHES) - USUAL_PITCH) ** 2 / (2 * PITCH_SPREAD**2)
        return float(tilts[int((PITCH_TELLS * doubt + unusual).argmin())])

    def _look(self, x: torch.Tensor, down: int = 0, right: int = 0, gain: float = 1.0, mirrored: bool = False) -> torch.Tensor:
        """What the network for first pictures says of inputs that are mirrored, moved and exposed otherwise, put back: (3, N, H, W)."""
        h, w = x.shape[-2:]
        seen = F.pad(mirror(x) if mirrored else x, (right, 0, down, 0), mode="replicate")[..., :h, :w].clone()
        for channels in (slice(0, 3), slice(8, 11)):
            seen[:, channels] = ((seen[:, channels] + 1) * gain - 1).clamp(-1, 1)
        told = torch.stack(self.of_first(seen))
        told = F.pad(told, (0, right, 0, down), mode="replicate")[..., down:, right:]
        return told.flip(-1) if mirrored else told

    def _look_again(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`forward` of inputs that nothing but their looks tells about: the mean over several looks, each in the mirror, too.

        The whole picture, moved a little, and windows of it, enlarged: these know detail, but how far all of it is they leave to the
        whole. There is time: a world has one first picture. A single look at a photograph is torn where it is unlike the training's.
        """
        h, w = x.shape[-2:]
        mirrors = (False, True)
        whole = torch.stack([self._look(x, *look, mirrored) for look in LOOKS for mirrored in mirrors]).mean(0)
        high, wide = max(1, round(PART * h)), max(1, round(PART * w))
        parts, down, right = torch.zeros_like(whole), _fading(h, high), _fading(w, wide)
        for top, rows in ((0, down), (h - high, down.flip(0))):
            for left, columns in ((0, right), (w - wide, right.flip(0))):
                window = (..., slice(top, top + high), slice(left, left + wide))
                near = F.interpolate(x[window], size=(h, w), mode="bilinear")
                seen = torch.stack([self._look(near, mirrored=mirrored) for mirrored in mirrors]).mean(0)
                seen = F.interpolate(seen, size=(high, wide), mode="area")
                seen[0] += (whole[0][window] - seen[0]).flatten(1).median(1).values[:, None, None]
                parts[window] += seen * (rows[:, None] * columns).to(seen)
        return tuple((whole + parts) / 2)  # type: ignore[return-value]

    def perceive(
        self,
        frames: torch.Tensor,
        T_world_camera: torch.Tensor,
        camera: Camera,
        prior: Projection | None = None,
        previous: torch.Tensor | None = None,
    ) -> Perception:
        """See `Perceiver.perceive`. Without `prior` and `previous` nothing is called dynamic, for there is no evidence; with `by_looks`,
        what looks as if it might move is, as a ball does: nothing thinner than three pixels, for posts look like the ropes of swings.

        Of several frames every n-th is looked at, counted from the last (the map fuses no more); the others get the depth and the motion of
        the nearest one and no confidence.
        """
        rows = looked_at(len(frames), self.config.every)
        seen, pose = frames[rows], T_world_camera[rows]
        shown = None if prior is None else Projection(prior.rgb[rows], prior.depth[rows], prior.mask[rows], prior.index[rows])
        x = stack_inputs(seen, pose, camera, shown, None if previous is None else previous[rows], self.config.extends)
        with torch.inference_mode():
            look = self._look_again if prior is None and previous is None else self
            log_depth, log_scale, logit = look(x.to(self.stem.weight))  # device and number type of the weights
        log_depth = torch.where(logit > 0, log_depth, cautious(log_depth, log_scale))  # no ball is to jump nearer when in doubt
        depth = log_depth.exp().clamp(0.05, MAX_DEPTH).cpu()
        if prior is None:
            depth = median(depth)  # single wrong pixels would be edges to the map, and edges are holes
        dynamic = logit.sigmoid().cpu()
        if prior is None and previous is None:
            dynamic = opened((logit + SUSPICION).sigmoid().cpu()) if self.config.by_looks else torch.zeros_like(dynamic)
        source = nearest(len(frames), rows)
        looked = torch.zeros(len(frames), 1, 1)
        looked[rows] = 1
        return Perception(depth[source], confidence_of(log_scale).cpu()[source] * looked, dynamic[source])


def _fading(size: int, part: int) -> torch.Tensor:
    """(part,) weights of the first of two windows that overlap in a line of `size` pixels; the other's are the same reversed."""
    across = 2 * part - size
    return 1 - ((torch.arange(part) + 0.5 - (size - part)) / across).clamp(0, 1)


def median(depth: torch.Tensor, size: int = 5) -> torch.Tensor:
    """Median of the size x size neighbours of every pixel of (T, H, W), borders repeated; size is odd."""
    edge = size // 2
    padded = F.pad(depth.unsqueeze(1), (edge, edge, edge, edge), mode="replicate")
    return padded.unfold(2, size, 1).unfold(3, size, 1).flatten(-2).median(-1).values[:, 0]


def cautious(log_depth: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Log depth (T, H, W) as it is told: where the network is unsure of it, the one whose relative error is least to be expected.

    To be k times too far costs k - 1, to be k times too near less than 1. For a Laplace error of scale b < 1 of log depth, the mean of that
    is least b ln(1 + b) / (1 - b) before its median; but no nearer than anything beside it, for doubt is at silhouettes, and what floats
    between near and far would be one more edge to a map. What is sure stays where it is: nearer everywhere would bend a map, bit by bit.
    """
    doubt = log_scale.exp().clamp(max=MOST_DOUBT)
    told = torch.maximum(log_depth - doubt * doubt.log1p() / (1 - doubt), -highest_near(-log_depth, BESIDE))
    return torch.where(confidence_of(log_scale) < UNSURE, told, log_depth)


def confidence_of(log_scale: torch.Tensor) -> torch.Tensor:
    """Probability that the relative error stays below 10 %, for a Laplace error of this log scale."""
    return 1 - torch.exp(-CONFIDENT_ERROR / log_scale.exp())


def stack_inputs(
    frames: torch.Tensor,
    T_world_camera: torch.Tensor,
    camera: Camera,
    prior: Projection | None,
    previous: torch.Tensor | None,
    extends: bool = False,
) -> torch.Tensor:
    """The network's input (T, 14, H, W) float32 for frames (T, H, W, 3) uint8. `extends`: memory depth goes on beyond its mask."""
    t, h, w, _ = frames.shape
    rgb = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
    earlier = rgb if previous is None else previous.permute(0, 3, 1, 2).float() / 127.5 - 1
    if prior is None:
        memory = rgb.new_zeros(t, 5, h, w)
    else:
        mask = prior.mask.unsqueeze(1).float()
        depth = continued(prior.depth, prior.mask) if extends else prior.depth
        log_depth = (depth.clamp(0.05, MAX_DEPTH).log() - math.log(TYPICAL_DEPTH)).unsqueeze(1)
        told = (depth > 0).unsqueeze(1).float() if extends else mask
        memory = torch.cat([(prior.rgb.permute(0, 3, 1, 2).float() / 127.5 - 1) * mask, log_depth * told, mask], 1)
    return torch.cat([rgb, memory, earlier, level_rays(T_world_camera, camera)], 1)


def mirror(x: torch.Tensor) -> torch.Tensor:
    """The network's input (T, 14, H, W) of the same scene seen in a mirror, a copy."""
    x = x.flip(-1)
    x[:, 11] = -x[:, 11]  # the ray's "right"
    return x


def level_rays(T_world_camera: torch.Tensor, camera: Camera) -> torch.Tensor:
    """(T, 3, H, W): each pixel's ray (camera z = 1) as right, down, ahead of a level camera with the same heading.

    A camera that looks straight up or down has no heading: its own "up" or "down" edge then counts as ahead.
    """
    rays = pixel_rays(camera)  # (H, W, 3)
    rotation = T_world_camera[:, :3, :3].to(rays.dtype)
    down = torch.tensor([0.0, 1.0, 0.0], dtype=rays.dtype)
    ahead = rotation[:, :, 2] * (1 - down)
    other = -rotation[:, :, 1] * (1 - down) * rotation[:, 1, 2].sign().unsqueeze(-1)
    ahead = F.normalize(torch.where(ahead.norm(dim=-1, keepdim=True) > 1e-3, ahead, other), dim=-1)
    right = torch.linalg.cross(down.expand_as(ahead), ahead)
    level = torch.stack([right, down.expand_as(ahead), ahead], 1)  # rows: axes of the level frame in the world
    return torch.einsum("tij,tjk,hwk->tihw", level, rotation, rays)
