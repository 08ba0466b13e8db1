"""The release's loop stated plainly, from the public classes of diffusers and transformers: merged LoRA weights, one forward after another,
every point against every pixel."""

from __future__ import annotations

import html
from types import SimpleNamespace

import ftfy
import numpy as np
import torch
from safetensors.torch import load_file

from spatia_model.generator.names import to_diffusers
from spatia_model.generator.transformer import SpatiaTransformer
from spatia_model.geometry.camera import camera_from_fov, project
from spatia_model.memory.mapping import map_clip
from spatia_model.memory.point_memory import PointMemory
from spatia_model.release_world import MAPPING, join_sentences
from spatia_model.types import Perception
from tests.spatia_model.geometry.test_point_compositing import composite_reference


class Slope:
    """Depth from the memory where it shows something, else a slope; the brightest pixels move."""

    def perceive(self, frames, T_world_camera, camera, prior=None, previous=None):
        shape = frames.shape[:3]
        rows, columns = torch.arange(shape[1])[:, None] / shape[1], torch.arange(shape[2]) / shape[2]
        depth = (2 + 0.7 * rows + 0.31 * columns + 0.05 * (9 * rows * columns).sin()).expand(shape).clone()  # no two pixels equally far
        if prior is not None:
            depth = torch.where(prior.mask, prior.depth, depth)
        moving = (frames.float().mean(-1) > 245).float()
        return Perception(depth, torch.full(shape, 0.8), moving)


class Plain:
    """The release's networks, opened with the public classes; LoRA by adding B A to copies of the weights."""

    def __init__(self, folder):
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
        from transformers import AutoTokenizer, UMT5EncoderModel

        self.vae = AutoencoderKLWan.from_pretrained(folder / "vae")
        self.text = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self.without, self.adapted = (SpatiaTransformer.from_pretrained(folder / "transformer").eval() for _ in range(2))
        lora = load_file(folder.parent / "spatia" / "lora_weights_10000.safetensors")
        with torch.no_grad():
            for key in [key for key in lora if ".lora_A." in key]:
                weight = self.adapted.get_parameter(to_diffusers(key.removeprefix("pipe.dit.").partition(".lora_A")[0]) + ".weight")
                weight += lora[key.replace("lora_A", "lora_B")] @ lora[key]

    def encode(self, frames):
        """(T, H, W, 3) in -1..1 (or 0..1) -> (1, C, F, h, w)."""
        config = self.vae.config
        mean, std = (torch.tensor(getattr(config, f"latents_{n}")).view(1, -1, 1, 1, 1) for n in ("mean", "std"))
        return (self.vae.encode(frames.permute(3, 0, 1, 2)[None]).latent_dist.mode() - mean) / std

    def decode(self, latents, cut=True):
        """(1, C, F, h, w) -> (T, H, W, 3) uint8, fractions cut off or rounded."""
        config = self.vae.config
        mean, std = (torch.tensor(getattr(config, f"latents_{n}")).view(1, -1, 1, 1, 1) for n in ("mean", "std"))
        video = self.vae.decode(latents * std + mean).sample[0].permute(1, 2, 3, 0)
        colors = ((video + 1) * 127.5).clip(0, 255)
        return (colors if cut else colors.round()).to(torch.uint8)

    def rows(self, text):
        # Wan's tokenizer cleans first; of the released negative prompt this makes the wide commas plain ones, other tokens.
        text = " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
        given = self.tokenizer([text], padding="max_length", truncation=True, max_length=512, return_tensors="pt")
        rows = self.text(given.input_ids, given.attention_mask).last_hidden_state
        return rows * given.attention_mask[..., None]

    def denoise(self, network, noise, known, references, control, prompt, config):
        from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

        scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=config.shift)
        scheduler.set_timesteps(config.steps, sigmas=np.linspace(0.999, 0, config.steps + 1)[:-1])
        positive, negative = self.rows(prompt + config.prompt_suffix), self.rows(config.negative_prompt)
        count = references.shape[2]
        x = torch.cat([references, known, noise[:, :, known.shape[2] :]], 2)
        for t in scheduler.timesteps:
            times = torch.full((1, x.shape[2]), float(t))
            times[:, : count + known.shape[2]] = 0
            yes, no = (network(x, times, rows, control, count, config.control_scale) for rows in (positive, negative))
            x = scheduler.step(no + config.guidance * (yes - no), t, x, return_dict=False)[0]
            x[:, :, : count + known.shape[2]] = torch.cat([references, known], 2)
        return x[:, :, count:]


@torch.no_grad()
def plain_loop(plain, config, image, prompt, paths, texts, rng_state, padded, drawn, chosen_by_overlap=()):
    """Each clip, and the whole video. `padded`: new frames of each clip with its padding; `drawn`: our drawings of the memory;
    `chosen_by_overlap`: references of each clip where matching is by overlap (`retrieve` has its own tests).

    A drawing's fractions are cut off, so where a value is nearly whole, rounding decides over a step of colour. So our drawing is held to
    within one step of the plain one, and then taken, lest such steps hide other differences.
    """
    camera = camera_from_fov(config.fov_x, config.width, config.height)
    frames, poses = [*image[None]], [*torch.eye(4, dtype=torch.float64)[None]]
    perceiver = Slope()
    start = torch.stack(poses)
    nothing = PointMemory.empty(config.voxel_size, max_points=config.max_points)
    memory, _ = map_clip(
        nothing, image[None], start, camera, perceiver.perceive(image[None], start, camera), nothing.project(start, camera), 0, MAPPING
    )
    clips, latents = [], []
    generator = torch.Generator()
    generator.set_state(rng_state)
    for round_number, (path, text) in enumerate(zip(paths, texts, strict=True)):
        history = frames[-config.history_frames :]
        begin = len(frames) - len(history)
        window = [*poses[begin:], *path]
        window = torch.stack(window + [window[-1]] * (padded[round_number] - len(path)))
        # projection: one point per cell, every point against every pixel
        cell = config.render_voxel + round_number * config.render_voxel_step
        low = memory.positions.double().amin(0) - cell / 2
        cells: dict = {}
        for row, place in enumerate(((memory.positions.double() - low) / cell).floor().long().tolist()):
            cells.setdefault(tuple(place), []).append(row)
        points = torch.stack([memory.positions[rows].double().mean(0) for rows in cells.values()]).float()
        colors = torch.stack([memory.colors[rows].double().mean(0).round() for rows in cells.values()]).to(torch.uint8)
        rgb, cover = composite_reference(points, colors, window, camera, config.point_radius, config.points_per_pixel)
        ours = drawn[round_number]
        off = torch.cat([(ours.rgb - rgb * 255).abs().amax(-1), (ours.alpha - cover * 255).abs()])
        # A step for the fraction, one for colours fused of frames that differ by one; seldom more: two points equally far, a rim.
        assert (off > 2.01).float().mean() < 2e-3, (round_number, float((off > 2.01).float().mean()), float(off.max()))
        rgb, cover = ours.rgb, ours.alpha
        # references: every 4th frame before the history, one for every 12th of the window at the released rates
        chosen = list(chosen_by_overlap[round_number]) if config.matching == "iou" else []
        if round_number and config.matching == "hungarian":
            past = list(range(0, begin, round(config.frame_rate / config.candidate_rate)))
            aims = window[:: round(config.frame_rate / config.target_rate)]
            seen = [plainly_seen(memory.positions, view, camera) for view in (aims, torch.stack([poses[i] for i in past]))]
            shared = torch.tensor([[len(a & b) for b in seen[1]] for a in seen[0]])
            chosen = [past[i] for i in best_assignment(shared)][: config.max_references]
        known = plain.encode(torch.stack(history).float() / 127.5 - 1)
        pictures = [plain.encode(frames[i][None].float() / 127.5 - 1) for i in chosen]
        references = torch.cat(pictures, 2) if pictures else known[:, :, :0]
        holes = ((255 - cover.float()) / 255)[..., None].expand(-1, -1, -1, 3)
        control = torch.cat([plain.encode(rgb.float() / 127.5 - 1), plain.encode(holes)], 1)
        if config.same_noise:
            generator.set_state(rng_state)
        shape = (1, known.shape[1], (len(window) - 1) // 4 + 1, *known.shape[3:])
        noise = torch.randn(shape, generator=generator)
        network = plain.adapted if (config.lora_later if round_number else config.lora_first) else plain.without
        made = plain.denoise(network, noise, known, references, control, join_sentences(prompt, text), config)
        new = plain.decode(made, config.truncate)[len(history) :][: len(path)]
        clips.append(SimpleNamespace(frames=new, references=chosen))
        latents.append(made if not round_number else made[:, :, known.shape[2] :])
        first = len(frames)
        frames, poses = [*frames, *new], [*poses, *path]
        rows = [i for i in range(first, len(frames)) if i % round(config.frame_rate / config.map_rate) == 0]
        seen, there = torch.stack([frames[i] for i in rows]), torch.stack([poses[i] for i in rows])
        shown = memory.project(there, camera)
        memory, _ = map_clip(memory, seen, there, camera, perceiver.perceive(seen, there, camera, shown), shown, round_number + 1, MAPPING)
    return clips, plain.decode(torch.cat(latents, 2), config.truncate)


def plainly_seen(points, path, camera):
    """For every view the set of points that are nearest in their pixel."""
    uv, z = project(points, path, camera)
    views = []
    for t in range(len(path)):
        best: dict = {}
        for n, ((u, v), depth) in enumerate(zip(uv[t].floor().long().tolist(), z[t].tolist(), strict=True)):
            if depth > 0 and 0 <= u < camera.width and 0 <= v < camera.height:
                best.setdefault((u, v), []).append((depth, n))
        views.append({n for found in best.values() for depth, n in found if depth <= min(found)[0] + 1e-6})
    return views


def best_assignment(shared):
    """Of all ways to give each target a frame of its own the one that shares most; for each target in order."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-shared.to(torch.bfloat16).float().numpy())
    return [int(column) for _, column in sorted(zip(rows, columns, strict=True))]


def assert_alike(found, wanted):
    """Equal but for float32 rounding, which decides where a value is nearly whole."""
    difference = (found.int() - wanted.int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01, (int(difference.max()), float((difference > 0).float().mean()))
