"""A person's own masks: how they are read, fitted to the frames, and that they win."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from spatia_model.perception.user_masks import MaskedWorld, UserMaskPerceiver, UserMasks, fit_masks, read_masks, with_user_masks
from spatia_model.types import Perception
from tests.spatia_model import tiny


def blob(height: int = 12, width: int = 20, x: int = 4) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[3:8, x : x + 5] = 255
    return mask


def save(path, array) -> str:
    Image.fromarray(array).save(path)
    return str(path)


@pytest.mark.parametrize("scale", [1, 255])
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_one_picture(tmp_path, scale, suffix):
    array = blob() // 255 * scale
    masks = read_masks(save(tmp_path / f"mask.{suffix}", array) if suffix == "png" or scale == 255 else save(tmp_path / "mask.png", array))
    assert masks.dtype == torch.bool and torch.equal(masks[0], torch.from_numpy(blob() > 0))


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    for number in (10, 2, 1):
        save(tmp_path / f"frame_{number}.png", blob(x=number))
    (tmp_path / "notes.txt").write_text("not a mask")
    masks = read_masks(tmp_path)
    assert [int(mask.any(0).nonzero()[0]) for mask in masks] == [1, 2, 10]
    assert torch.equal(read_masks([tmp_path / "frame_10.png", tmp_path / "frame_2.png"]), masks[[2, 1]])  # given by name: in that order


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32, np.int64])
def test_arrays(tmp_path, kind):
    stack = np.stack([blob(), blob(x=9)])
    np.save(tmp_path / "masks.npy", (stack > 0).astype(kind) if kind != np.uint8 else stack)
    assert torch.equal(read_masks(tmp_path / "masks.npy"), torch.from_numpy(stack > 0))
    np.save(tmp_path / "one.npy", stack[0] > 0)
    assert read_masks(tmp_path / "one.npy").shape == (1, 12, 20)


def test_soft_edges_are_no_harm(tmp_path):
    soft = Image.fromarray(blob(120, 200, 40)).resize((60, 40), Image.Resampling.BILINEAR)
    soft.save(tmp_path / "soft.jpg", quality=80)
    assert read_masks(tmp_path / "soft.jpg").sum() > 0


def bad_files(folder) -> dict[str, tuple]:
    photo = np.tile(np.arange(120, dtype=np.uint8), (12, 1)) + 70
    np.save(folder / "objects.npy", np.array([{}], dtype=object))
    np.save(folder / "flat.npy", np.zeros(7))
    np.save(folder / "range.npy", np.full((1, 4, 4), -1.0))
    np.save(folder / "nan.npy", np.full((1, 4, 4), np.nan))
    (folder / "cut.npy").write_bytes((folder / "flat.npy").read_bytes()[:20])
    (folder / "cut.png").write_bytes(b"\x89PNG\r\n")
    (folder / "empty").mkdir()
    good = save(folder / "good.png", blob())
    return {
        "none": ([], "no masks given"),
        "missing": (folder / "no.png", "'.*no.png' does not exist"),
        "missing array": (folder / "no.npy", "'.*no.npy' does not exist"),
        "empty folder": (folder / "empty", "holds no pictures"),
        "damaged picture": (folder / "cut.png", "cannot be read as a picture"),
        "damaged array": (folder / "cut.npy", "cannot be read as an array"),
        "pickled": (folder / "objects.npy", "cannot be read as an array"),
        "wrong shape": (folder / "flat.npy", r"holds float64 \(7,\); expected \[N, H, W\]"),
        "negative": (folder / "range.npy", "values in -1..-1"),
        "not a number": (folder / "nan.npy", "values in nan..nan"),
        "a photo": (save(folder / "photo.png", photo), "is no binary mask"),
        "all foreground": (save(folder / "full.png", np.full((6, 6), 255, np.uint8)), "foreground everywhere.*invert it"),
        "two sizes": ([good, save(folder / "other.png", blob(12, 21))], "21x12 pixels.*20x12"),
        "array and picture": ([good, folder / "flat.npy"], "one of 2 mask files"),
    }


def test_bad_files_are_named(tmp_path):
    for given, message in bad_files(tmp_path).values():
        with pytest.raises(ValueError, match=message):
            read_masks(given)


def test_masks_are_cropped_as_the_picture_is():
    masks = torch.zeros(1, 40, 100, dtype=torch.bool)
    masks[:, :, 70:] = True  # the right edge of a square cut from the middle, columns 30 to 69, is at 70
    assert not fit_masks(masks, (400, 1000), (16, 16)).any()
    masks[:, :, 50:] = True
    fitted = fit_masks(masks, (400, 1000), (16, 16))
    assert fitted.shape == (1, 16, 16) and fitted[0, :, 8:].all() and not fitted[0, :, :8].any()
    tall = fit_masks(masks.transpose(1, 2), (1000, 400), (16, 16))
    assert torch.equal(tall, fitted.transpose(1, 2))


def test_masks_of_the_frames_own_shape_are_not_cropped():
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[:, :8] = True
    assert torch.equal(fit_masks(masks, (704, 1248), (32, 32)), masks)
    assert fit_masks(masks, (704, 1248), (16, 16))[0, :4].all() and not fit_masks(masks, (704, 1248), (16, 16))[0, 4:].any()
    wide = torch.zeros(1, 704, 1248, dtype=torch.bool)
    assert fit_masks(wide, (704, 1248), (352, 624)).shape == (1, 352, 624)


def test_thin_things_survive_being_made_smaller():
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[:, :, 30:32] = True  # 2 of 8 pixels of a coarse one
    assert fit_masks(masks, (64, 64), (8, 8))[0, :, 3].all()


def test_masks_of_another_shape_are_refused():
    with pytest.raises(
        ValueError, match=r"masks are 100x100 pixels; expected the shape of the picture \(1248x704\) or of the frames \(832x480\)"
    ):
        fit_masks(torch.zeros(1, 100, 100, dtype=torch.bool), (704, 1248), (480, 832))


def test_which_frame_has_which_mask():
    numbered = torch.zeros(3, 1, 4, dtype=torch.bool)
    for i in range(3):
        numbered[i, 0, i] = True
    masks, given = UserMasks(numbered).of_frames(range(1, 5))
    assert given.tolist() == [True, True, False, False] and masks[:2].nonzero()[:, 2].tolist() == [1, 2]
    masks, given = UserMasks(numbered, shared=True).of_frames([50, 51])
    assert given.all() and masks[:, 0].tolist() == [[True, True, True, False]] * 2
    with pytest.raises(ValueError, match=r"expected \(N, H, W\) bool"):
        UserMasks(torch.zeros(3, 1, 4))


class Opinion:
    """A perceiver that calls the right half moving."""

    def perceive(self, frames, T_world_camera, camera, prior=None, previous=None):
        shape = frames.shape[:3]
        dynamic = torch.zeros(shape)
        dynamic[:, :, shape[2] // 2 :] = 0.9
        return Perception(torch.full(shape, 2.0), torch.full(shape, 0.7), dynamic)


def test_a_persons_masks_win_both_ways_and_leave_the_rest():
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = True
    perceiver = UserMaskPerceiver(Opinion(), UserMasks(masks), first=1)
    seen = perceiver.perceive(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.eye(4).repeat(2, 1, 1), tiny.tiny_model().camera)
    assert not seen.dynamic[0].any()  # mask 1 is empty: nothing moves, whatever the perceiver thinks
    assert float(seen.dynamic[1, 0, 3]) == pytest.approx(0.9)  # frame 2 has no mask
    assert (seen.depth == 2).all() and (seen.confidence == 0.7).all()
    first = UserMaskPerceiver(Opinion(), UserMasks(masks)).perceive(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), torch.eye(4)[None], None)
    assert first.dynamic[0, 0, 0] == 1 and first.dynamic.sum() == 1
    with pytest.raises(ValueError, match="the masks are 4x4 pixels, the frames 5x4"):
        perceiver.perceive(torch.zeros(2, 4, 5, 3, dtype=torch.uint8), None, None)


def test_what_is_masked_never_enters_the_map():
    world = tiny.tiny_model()
    picture = tiny.picture()
    masks = torch.zeros(1, tiny.SIZE, tiny.SIZE, dtype=torch.bool)
    masks[:, :, :12] = True
    masked = with_user_masks(world, UserMasks(masks), 0).begin(picture)
    free = world.begin(picture)
    assert masked.frames_dynamic[0, :, :12].all() and not masked.frames_dynamic[0, :, 14:].any()
    shown = masked.memory.project(masked.T_world_camera[-1:], masked.camera)
    assert not shown.mask[0, :, :10].any() and shown.mask[0, :, 16:].float().mean() > 0.9
    assert len(masked.memory) < len(free.memory)
    assert world.begin(picture).frames_dynamic.sum() == free.frames_dynamic.sum()  # the world itself is as it was


def test_masks_are_replaced_not_stacked():
    world = with_user_masks(
        with_user_masks(tiny.tiny_model(), UserMasks(torch.zeros(1, 4, 4, dtype=torch.bool)), 0),
        UserMasks(torch.zeros(1, 4, 4, dtype=torch.bool)),
        1,
    )
    assert not isinstance(world.perceiver.perceiver, UserMaskPerceiver) and world.perceiver.first == 1
    with pytest.raises(ValueError, match="a int has no perceiver"):
        with_user_masks(3, UserMasks(torch.zeros(1, 4, 4, dtype=torch.bool)), 0)


def test_a_world_that_perceives_every_nth_frame_gets_the_masks_of_those():
    """As the 5B does: the frames of the video whose number is a multiple of its stride."""
    from types import SimpleNamespace

    numbered = torch.zeros(20, 1, 20, dtype=torch.bool)
    numbered[torch.arange(20), 0, torch.arange(20)] = True
    seen = []

    class World:
        config = SimpleNamespace(map_rate=4.0, stride=lambda rate: 6)
        perceiver = SimpleNamespace(
            geometry="its own",
            perceive=lambda frames, *rest: Perception(
                torch.ones(len(frames), 1, 20), torch.ones(len(frames), 1, 20), torch.zeros(len(frames), 1, 20)
            ),
        )

        def advance(self, state, path, text=""):
            assert self.perceiver.geometry == "its own"
            rows = [row for row in range(len(path)) if (state.frame_count + row) % 6 == 0]
            frames = torch.zeros(len(rows), 1, 20, 3, dtype=torch.uint8)
            seen.append(self.perceiver.perceive(frames, None, None).dynamic.nonzero()[:, 2].tolist())

        def observe(self, state, frames, path, text=""):
            self.advance(state, path, text)

    world = MaskedWorld(World(), UserMasks(numbered))
    world.advance(SimpleNamespace(frame_count=1), [None] * 12)
    world.advance(SimpleNamespace(frame_count=13), [None] * 6, text="")
    world.observe(SimpleNamespace(frame_count=5), None, [None] * 4, text="")
    assert seen == [[6, 12], [18], [6]]
    assert world.config.map_rate == 4.0
    with pytest.raises(ValueError, match="2 frames are to be perceived, masks are ready for 1: frames .18."):
        UserMaskPerceiver(World.perceiver, UserMasks(numbered), numbers=[18]).perceive(
            torch.zeros(2, 1, 20, 3, dtype=torch.uint8), None, None
        )
