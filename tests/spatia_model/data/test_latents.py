from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from spatia_model.config import MiniConfig
from spatia_model.data.latents import LatentFolder, encode_walk, make_latents, mirrored, read_window, window_frames
from spatia_model.data.procedural import write_atomic
from spatia_model.data.windows import WindowFolder
from spatia_model.generator.conditioning import fill_holes, to_model
from spatia_model.worlds import World
from tests.spatia_model.data.fake_walks import CLIPS, fake_walk, tensors, write
from tests.spatia_model.generator.test_vae import build

SEED = 2_000_000
CONFIG = MiniConfig(image_size=32)


def test_the_first_window_repeats_the_first_frame():
    assert window_frames(0, CONFIG).tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert window_frames(1, CONFIG).tolist() == list(range(4, 17))
    short = MiniConfig(image_size=32, history_frames=9, frames_per_clip=4)
    assert window_frames(1, short).tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("clip", [0, 2])
def test_a_window_holds_the_frames_of_its_numbers(clip):
    walked, remembered = tensors()
    rgb, dynamic, shown = read_window(fake_walk(), clip, CONFIG)
    rows = window_frames(clip, CONFIG)
    assert torch.equal(rgb, walked["rgb"][rows])
    assert torch.equal(dynamic, walked["dynamic"][rows].float())
    assert torch.equal(shown.rgb, remembered["projection_rgb"][rows])
    assert torch.equal(shown.mask, remembered["projection_depth"][rows] > 0)
    assert torch.equal(shown.depth, remembered["projection_depth"][rows].float())


def test_a_mirror_swaps_left_and_right_and_nothing_else():
    assert mirrored("a ball rolls to the left , a box slides to the right .") == "a ball rolls to the right , a box slides to the left ."
    text = "bright upright leftover ball swings from side to side"
    assert mirrored(text) == text
    assert mirrored(mirrored("left right left")) == "left right left"


def test_encoded_clips_equal_their_plain_statement():
    vae, walk = build(), fake_walk()
    found = encode_walk(walk, vae, CONFIG)
    assert {name: (tuple(t.shape), t.dtype) for name, t in found.items()} == {
        "target": ((CLIPS, 4, 4, 4, 4), torch.float16),
        "control": ((CLIPS, 12, 4, 4, 4), torch.float16),
        "references": ((CLIPS, 3, 4, 4, 4), torch.float16),
        "reference_count": ((CLIPS,), torch.int64),
        "moving": ((CLIPS, 4, 4, 4), torch.uint8),
        "uncovered": ((CLIPS, 4, 4, 4), torch.uint8),
    }
    assert found["reference_count"].tolist() == [1, 2, 3]
    walked, remembered = tensors()
    for clip in range(CLIPS):
        rows = window_frames(clip, CONFIG)
        target = vae.encode(to_model(walked["rgb"][rows][None]))[0]
        torch.testing.assert_close(found["target"][clip], target.half(), atol=2e-3, rtol=2e-3)
        mask, moves = remembered["projection_depth"][rows] > 0, walked["dynamic"][rows]
        filled = fill_holes(to_model(remembered["projection_rgb"][rows][None])[0].transpose(0, 1), mask[:, None].float())
        shown = vae.encode(filled.transpose(0, 1)[None])[0]
        torch.testing.assert_close(found["control"][clip, :4], shown.half(), atol=2e-3, rtol=2e-3)
        for latent in range(4):
            frames = [max(0, 4 * latent + phase - 3) for phase in range(4)]
            for y, x in ((0, 0), (3, 1)):
                cell = slice(8 * y, 8 * y + 8), slice(8 * x, 8 * x + 8)
                covered = [float(mask[(f, *cell)].float().mean()) for f in frames]
                moving = [float(moves[(f, *cell)].float().mean()) for f in frames]
                assert found["control"][clip, 4:8, latent, y, x].tolist() == pytest.approx(covered, abs=1e-3)
                # only the past's motion is known, and of a single picture none
                known = [m if f < 5 and clip else 0.0 for m, f in zip(moving, frames, strict=True)]
                assert found["control"][clip, 8:, latent, y, x].tolist() == pytest.approx(known, abs=1e-3)
                assert abs(int(found["uncovered"][clip, latent, y, x]) - 255 * (1 - np.mean(covered))) <= 0.51
                assert abs(int(found["moving"][clip, latent, y, x]) - 255 * np.mean(moving)) <= 0.51
        for i in range(3):
            reference = found["references"][clip, i]
            if i <= clip:
                single = vae.encode(to_model(walked["rgb"][8 * i][None, None]))[0, :, 0]
                torch.testing.assert_close(reference, single.half(), atol=2e-3, rtol=2e-3)
            else:
                assert reference.abs().max() == 0


def test_the_mirror_of_a_mirrored_walk_is_the_walk():
    vae = build()
    straight, twice = encode_walk(fake_walk(), vae, CONFIG), encode_walk(fake_walk(mirrored=True), vae, CONFIG, mirror=True)
    assert all(torch.equal(straight[name], twice[name]) for name in straight)
    once = encode_walk(fake_walk(), vae, CONFIG, mirror=True)
    assert not torch.equal(once["target"], straight["target"])
    assert torch.equal(once["moving"], straight["moving"].flip(-1)) and torch.equal(once["uncovered"], straight["uncovered"].flip(-1))
    assert torch.equal(once["control"][:, 4:], straight["control"][:, 4:].flip(-1))


def test_every_walk_is_encoded_with_its_mirror_once(tmp_path):
    write(tmp_path, SEED)
    folder, out, vae = WindowFolder(tmp_path / "walks", tmp_path / "windows"), tmp_path / "latents", build()
    make_latents(folder, out, vae, CONFIG)
    assert sorted(p.name for p in out.iterdir()) == [f"{SEED}-mirror.safetensors", f"{SEED}.safetensors"]
    latents = LatentFolder(out)
    captions = {json.loads(latents.files.open(i).metadata()["captions"])[0] for i in range(2)}
    assert captions == {"a ball rolls to the left", "a ball rolls to the right"}
    (out / f"{SEED}.safetensors").write_bytes(b"kept")
    (out / f"{SEED}-mirror.safetensors").unlink()
    make_latents(folder, out, vae, CONFIG)
    assert (out / f"{SEED}.safetensors").read_bytes() == b"kept" and (out / f"{SEED}-mirror.safetensors").exists()


def test_windows_have_the_references_asked_for(tmp_path):
    held = encode_walk(fake_walk(), build(), CONFIG)
    prompt = World.generate(SEED).caption()
    write_atomic(tmp_path / "1.safetensors", held, {"captions": json.dumps(["first", "second", "third"]), "prompt": prompt})
    latents, rng = LatentFolder(tmp_path), np.random.default_rng(SEED)
    clips = {0: "first", 1: "second", 2: "third"}
    for least, expected in ((0, {0, 1, 2}), (2, {1, 2}), (3, {2})):
        seen = set()
        for _ in range(25):
            window, said, text = latents.window(rng, least)
            (clip,) = (i for i, name in clips.items() if name == text)
            seen.add(clip)
            assert said == prompt and set(window) == {"target", "control", "references", "moving", "uncovered"}
            for name, tensor in window.items():
                assert torch.equal(tensor.float(), held[name][clip].float())
        assert seen == expected
    with pytest.raises(ValueError, match="no window in .* has 4 references"):
        latents.window(rng, 4)
