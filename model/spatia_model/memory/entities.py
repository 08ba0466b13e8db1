"""Things that move (the paper's dynamic entities): kept out of the static map, carried along beside it.

The paper masks entities out of the memory and leaves them to the generator. A small generator lets them fade, so the embedded tier keeps
what it saw of each: a handful of points that move as a whole. They are drawn over what is generated; the generator itself is shown neither
them nor, in its past, what they hid, and the map never holds them. An entity that goes out of view stays where it went.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from spatia_model.geometry.camera import project, unproject
from spatia_model.geometry.rendering import SplatStyle, splat
from spatia_model.types import Camera, Projection

MAX_ENTITIES = 8
NEAR = 0.05  # metres: what is nearer to the camera is not drawn
PAST = (2, 4, 8)  # frames before the last one at which an entity's place is remembered
LEAST_AREA = 0.001  # of the picture; anything smaller is noise
UNLIKE = 45.0  # mean difference of colours, of 255, from which a frame does not show what it was told to
SAME_SHADE = 60.0  # distance of mean colours, of 255 each
HIDDEN = 0.08  # share of its depth by which something must be nearer to hide an entity: a guess in depth must not sink it into the floor
THICKNESS = 0.04  # share of its depth by which an entity's points may lie before or behind its middle; with more it tears


@dataclass(frozen=True)
class Entities:
    """Points of every entity as they are at the state's last frame."""

    positions: torch.Tensor  # (N, 3) float32, metres, world
    colors: torch.Tensor  # (N, 3) uint8
    radii: torch.Tensor  # (N,) float32, metres: the half side of a point when drawn
    owner: torch.Tensor  # (N,) int64, whose point it is: 0..E-1
    past: torch.Tensor  # (E, len(PAST), 3) float32, metres, world: where its centre was, less where it is
    watched: torch.Tensor  # (E,) bool, whether `past` was seen; a picture alone does not tell

    @staticmethod
    def empty() -> Entities:
        return Entities(
            torch.empty(0, 3),
            torch.empty(0, 3, dtype=torch.uint8),
            torch.empty(0),
            torch.empty(0, dtype=torch.int64),
            torch.empty(0, len(PAST), 3),
            torch.empty(0, dtype=torch.bool),
        )

    def __len__(self) -> int:
        return len(self.past)

    @property
    def centres(self) -> torch.Tensor:
        """(E, 3) float32: means of their points."""
        return self._means(self.positions)

    @property
    def shades(self) -> torch.Tensor:
        """(E, 3) float32 in 0..255: mean colours."""
        return self._means(self.colors.float())

    @property
    def spreads(self) -> torch.Tensor:
        """(E,) float32, metres: root mean square distance of their points from their centres."""
        return self._means((self.positions - self.centres[self.owner]).square().sum(1, keepdim=True))[:, 0].sqrt()

    @property
    def sizes(self) -> torch.Tensor:
        """(E,) float32, metres: sides of squares as large as what is seen of them."""
        return torch.zeros(len(self)).index_add_(0, self.owner, (2 * self.radii).square()).sqrt()

    def _means(self, values: torch.Tensor) -> torch.Tensor:
        count = torch.zeros(len(self), 1).index_add_(0, self.owner, torch.ones(len(self.owner), 1))
        return torch.zeros(len(self), values.shape[1]).index_add_(0, self.owner, values) / count.clamp(min=1)

    def joined(self, other: Entities) -> Entities:
        """These and the others; of too many the first ones go."""
        both = Entities(
            torch.cat([self.positions, other.positions]),
            torch.cat([self.colors, other.colors]),
            torch.cat([self.radii, other.radii]),
            torch.cat([self.owner, other.owner + len(self)]),
            torch.cat([self.past, other.past]),
            torch.cat([self.watched, other.watched]),
        )
        gone = max(0, len(both) - MAX_ENTITIES)
        return both.only(torch.arange(len(both)) >= gone) if gone else both

    def only(self, kept: torch.Tensor) -> Entities:
        """The entities where `kept` (E,) bool is True."""
        points = kept[self.owner]
        number = kept.long().cumsum(0) - 1
        return Entities(
            self.positions[points],
            self.colors[points],
            self.radii[points],
            number[self.owner[points]],
            self.past[kept],
            self.watched[kept],
        )

    def moved(self, way: torch.Tensor) -> Entities:
        """After a clip: `way` (E, T, 3) metres in the world is how far each was, frame by frame, from where it is now."""
        steps = way.shape[1]
        earlier = [way[:, steps - 1 - ago] if ago < steps else torch.zeros_like(way[:, 0]) for ago in PAST]
        past = torch.stack([place - way[:, -1] for place in earlier], 1)
        return replace(self, positions=self.positions + way[:, -1][self.owner], past=past, watched=torch.ones_like(self.watched))

    def project(self, way: torch.Tensor, T_world_camera: torch.Tensor, camera: Camera) -> Projection:
        """The entities seen along a path (T, 4, 4) while each goes its `way` (E, T, 3), nearer ones before farther ones.

        The projection's index is the entity's number, -1 where there is none.
        """
        shape = (len(T_world_camera), camera.height, camera.width)
        seen = Projection(
            torch.zeros(*shape, 3, dtype=torch.uint8),
            torch.zeros(shape),
            torch.zeros(shape, dtype=torch.bool),
            torch.full(shape, -1, dtype=torch.int32),
        )
        for k in range(len(self)):
            own = self.owner == k
            poses = T_world_camera.clone()
            poses[:, :3, 3] -= way[k].to(poses)  # a body that moves before a camera is a body at rest before a camera that moves back
            points, radii = self.positions[own].contiguous(), self.radii[own].contiguous()
            window = _window(points, float(radii.max()), poses, camera)
            if window is None:
                continue
            alone = splat(points, self.colors[own].contiguous(), poses, _cropped(camera, *window), radii)
            part = (slice(None), *window)
            nearer = alone.mask & (~seen.mask[part] | (alone.depth < seen.depth[part]))
            seen.rgb[part][nearer] = alone.rgb[nearer]
            seen.depth[part][nearer] = alone.depth[nearer]
            seen.mask[part][nearer] = True
            seen.index[part][nearer] = k
        return seen


def _window(points: torch.Tensor, radius: float, T_world_camera: torch.Tensor, camera: Camera) -> tuple[slice, slice] | None:
    """Rows and columns that hold points of a radius (metres) in every frame, with room for what splatting looks at; None: out of view.

    Most of a picture holds no entity, and a splat's cost is its pixels.
    """
    uv, z = project(points, T_world_camera, camera)
    before = z > NEAR
    if not bool(before.any()):
        return None
    reach = SplatStyle()
    edge = min(reach.cap, radius * float(camera.K[0, 0]) / max(NEAR, float(z[before].min()))) + max(reach.hole_reach, reach.leak_reach) + 2
    low, high = (uv[before].amin(0) - edge).floor().long(), (uv[before].amax(0) + edge).ceil().long()
    left, top = (max(0, int(v)) for v in low)
    right, bottom = min(camera.width, int(high[0])), min(camera.height, int(high[1]))
    return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None


def _cropped(camera: Camera, rows: slice, columns: slice) -> Camera:
    K = camera.K.clone()
    K[0, 2] -= columns.start
    K[1, 2] -= rows.start
    return Camera(K, columns.stop - columns.start, rows.stop - rows.start)


def unhidden(layer: Projection, memory: Projection) -> Projection:
    """What of a layer of entities is seen before the memory: all but what something clearly nearer hides."""
    seen = layer.mask & (~memory.mask | (layer.depth * (1 - HIDDEN) < memory.depth))
    return Projection(
        torch.where(seen[..., None], layer.rgb, torch.zeros_like(layer.rgb)),
        torch.where(seen, layer.depth, torch.zeros_like(layer.depth)),
        seen,
        torch.where(seen, layer.index, -1),
    )


def find(frame: torch.Tensor, depth: torch.Tensor, moves: torch.Tensor, T_world_camera: torch.Tensor, camera: Camera) -> Entities:
    """Entities of one frame: the connected parts of what may move.

    Args:
        frame: (H, W, 3) uint8.
        depth: (H, W) float32, metres.
        moves: (H, W) bool.
        T_world_camera: (4, 4) float64.
        camera: of the frame.
    """
    labels = np.asarray(ndimage.label(moves.numpy(), structure=np.ones((3, 3)))[0])  # type: ignore[index]
    areas = np.bincount(labels.ravel(), minlength=1)
    order = [int(k) for k in np.argsort(-areas[1:]) + 1 if areas[k] >= LEAST_AREA * moves.numel()][:MAX_ENTITIES]
    found = Entities.empty()
    for k in reversed(order):  # the largest last: of too many the first go
        mask = torch.from_numpy(labels == k)
        middle = depth[mask].median()
        # A depth edge is blurred: points at it would trail behind the entity like a tail.
        flat = depth.clamp(min=float(middle) * (1 - THICKNESS), max=float(middle) * (1 + THICKNESS))
        points = unproject(flat[None], T_world_camera[None], camera)[0][mask]
        pixel = flat[mask] * (2.0 / float(camera.K[0, 0] + camera.K[1, 1]))
        alone = Entities(
            points.float(),
            frame[mask],
            pixel.float(),
            torch.zeros(len(points), dtype=torch.int64),
            torch.zeros(1, len(PAST), 3),
            torch.zeros(1, dtype=torch.bool),
        )
        found = found.joined(alone)
    return found


def followed(
    entities: Entities,
    way: torch.Tensor,
    layer: Projection,
    frame: torch.Tensor,
    depth: torch.Tensor,
    moves: torch.Tensor,
    T_world_camera: torch.Tensor,
    camera: Camera,
) -> Entities:
    """Entities at the end of a clip: where they were to go, unless the last frame shows them elsewhere.

    Args:
        way: (E, T, 3) metres they were to go.
        layer: what is seen of them along the path, on that way, T frames.
        frame, depth, moves: the last frame (H, W, 3) uint8, its depth in metres, and bool whether a pixel moves.
        T_world_camera: (4, 4) of the last frame.
    """
    missed = _missed(len(entities), layer, frame)  # the others are out of sight, or where they were to be
    offset = torch.zeros(len(entities), 3)
    seen = find(frame, depth, moves, T_world_camera, camera) if missed else Entities.empty()
    there = entities.positions + way[:, -1][entities.owner]
    for k in missed:
        best = _match(entities, k, seen)
        if best is not None:
            place = _placed(entities, k, seen, best, T_world_camera[:3, 3].float())
            offset[k] = place - there[entities.owner == k].mean(0)
    share = torch.arange(1, way.shape[1] + 1) / way.shape[1]
    return entities.moved(way + offset[:, None] * share[:, None])


def observed(
    entities: Entities,
    frames: torch.Tensor,
    depth: torch.Tensor,
    looked: torch.Tensor,
    moves: torch.Tensor,
    T_world_camera: torch.Tensor,
    camera: Camera,
) -> Entities:
    """Entities at the end of frames that a camera took: cut out anew where the last one shows them, with the past that the frames show.

    Args:
        entities: as they were before the frames; what the last frame cannot show of them stays where it was. What it would show there and
            does not has gone elsewhere, or has been taken for another thing, and is forgotten: it would be seen twice.
        frames: (T, H, W, 3) uint8.
        depth: (T, H, W) metres.
        looked: (T,) bool, where depth and motion were perceived; the last frame's count in any case.
        moves: (T, H, W) bool.
        T_world_camera: (T, 4, 4).
        camera: of the frames.
    """
    eyes = T_world_camera[:, :3, 3].float()
    last = len(frames) - 1
    rows = {*looked.nonzero()[:, 0].tolist(), last}
    things = {t: find(frames[t], depth[t], moves[t], T_world_camera[t], camera) for t in rows}
    seen = things.pop(last)
    things[-1] = entities
    past, watched = torch.zeros_like(seen.past), torch.zeros_like(seen.watched)
    for k in range(len(seen)):
        sightings = {}
        for t, found in things.items():
            best = _match(seen, k, found)
            if best is not None:
                eye = eyes[max(t, 0)]
                # Depth, extent and area each tell how far it was: the mean of them is better than any.
                sightings[last - t] = torch.lerp(found.centres[best], _placed(seen, k, found, best, eye), 2 / 3), eye
        known = _evenly(seen.centres[k], sightings)
        if not known:
            continue
        watched[k] = True
        for i, ago in enumerate(PAST):
            near = min(known, key=lambda other: abs(other - ago))
            past[k, i] = known[near] * ago / near  # between sightings, and before the first, it went on evenly
    gone = torch.tensor([_match(entities, k, seen) is None for k in range(len(entities))], dtype=torch.bool)
    stay = entities.moved(torch.zeros(len(entities), len(frames), 3)).only(gone)
    layer = stay.project(torch.zeros(len(stay), 1, 3), T_world_camera[last:], camera)
    shown = Projection(frames[last:], depth[last:], torch.ones_like(layer.mask), layer.index)
    missed = _missed(len(stay), unhidden(layer, shown), frames[last])
    stay = stay.only(torch.tensor([k not in missed for k in range(len(stay))], dtype=torch.bool))
    return stay.joined(replace(seen, past=past, watched=watched))


def _missed(count: int, layer: Projection, frame: torch.Tensor) -> list[int]:
    """Which of so many entities the last frame of a layer, of what is seen of them, shows and a frame (H, W, 3) does not."""
    unlike = (frame.float() - layer.rgb[-1].float()).abs().mean(-1)
    parts = [layer.index[-1] == k for k in range(count)]
    return [k for k, own in enumerate(parts) if float(own.float().mean()) >= LEAST_AREA and float(unlike[own].mean()) >= UNLIKE]


def _evenly(here: torch.Tensor, sightings: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> dict[int, torch.Tensor]:
    """Places less `here` (3,), by frames ago, of sightings (place, eye): as seen across the line of sight, and along it at an even pace.

    A picture tells a thing's direction to the pixel, but its distance only by its looks: single distances would jump about. The pace is
    the median over pairs of sightings, of which now is one (Theil and Sen's slope): what was half hidden for a while was no farther away.
    """
    away = {0: 0.0} | {ago: float((place - eye).norm() - (here - eye).norm()) for ago, (place, eye) in sightings.items()}
    pace = float(np.median([(away[b] - away[a]) / (b - a) for a, b in itertools.combinations(away, 2)])) if sightings else 0.0
    known = {}
    for ago, (place, eye) in sightings.items():
        distance = (here - eye).norm() + pace * ago
        known[ago] = eye + F.normalize(place - eye, dim=0) * distance - here
    return known


def _match(entities: Entities, k: int, seen: Entities) -> int | None:
    """Which of the things that move in one frame entity k is, by colour and size; None where nothing is like it."""
    if not len(seen):
        return None
    shade = (seen.shades - entities.shades[k]).norm(dim=1)
    grown = entities.spreads[k] / seen.spreads.clamp(min=1e-3)
    fits = (shade < SAME_SHADE) & (grown > 0.5) & (grown < 2)
    return int(torch.where(fits, shade, torch.inf).argmin()) if bool(fits.any()) else None


def _placed(entities: Entities, k: int, seen: Entities, best: int, eye: torch.Tensor) -> torch.Tensor:
    """Where entity k is, seen from `eye` as the thing `best`.

    Its size is known, so what looks smaller than it is, in extent and area, stands farther away than depth has it.
    """
    extent = entities.spreads[k] / seen.spreads[best].clamp(min=1e-3)
    area = entities.sizes[k] / seen.sizes[best].clamp(min=1e-3)
    return eye + (seen.centres[best] - eye) * (extent.clamp(0.7, 1.4) + area.clamp(0.7, 1.4)) / 2
