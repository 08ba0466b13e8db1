"""The autoencoder by itself on test worlds and photos, and how much of a still photo perception calls moving.

    python benchmarks/autoencoder.py [PHOTO ...] [--worlds 8] [--seed 2000000] [--model spatia-mini] [--json]

Worlds: 9-frame walks at 8 frames a second; also apart by what the latents make of a frame (the first has a latent to itself, of the others
every fourth is an anchor). A photo is one frame, its middle square at 128x128; "dynamic" is the share of
pixels over 0.5 when the photo stands still for a clip in front of the memory made of it.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from PIL import Image, ImageOps

from spatia_model.evaluation.metrics import gradient_energy, psnr
from spatia_model.generator.conditioning import to_model
from spatia_model.geometry.pictures import fit_image
from spatia_model.world_model import WorldModel
from spatia_model.worlds import World
from spatia_model.worlds.trajectories import sample_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*")
    parser.add_argument("--worlds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=2_000_000)
    parser.add_argument("--model", default="spatia-mini")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model = WorldModel.from_pretrained(args.model)
    vae, size = model.generator.vae, model.config.image_size
    kinds = {"psnr_first": [0], "psnr_anchors": [4, 8], "psnr_between": [1, 2, 3, 5, 6, 7]}
    rows: dict[str, list[float]] = {"psnr": [], "gradient_energy": [], **{kind: [] for kind in kinds}}
    with torch.inference_mode():
        for seed in range(args.seed, args.seed + args.worlds):
            world = World.generate(seed)
            path = sample_path(world, np.random.default_rng([seed, 1]), 1)
            frames = to_model(world.render(path, model.camera, torch.arange(len(path)) / 8.0).rgb[None])
            decoded = vae.decode(vae.encode(frames))
            rows["psnr"].append(psnr(decoded, frames))
            rows["gradient_energy"].append(gradient_energy(decoded) / gradient_energy(frames))
            for kind, at in kinds.items():
                rows[kind].append(psnr(decoded[:, :, at], frames[:, :, at]))
        figures: dict[str, float] = {name: float(np.mean(values)) for name, values in rows.items()}
        for photo in args.photos:
            picture = fit_image(ImageOps.exif_transpose(Image.open(photo)).convert("RGB"), size)
            frame = to_model(picture[None, None])
            figures[f"psnr {photo}"] = psnr(vae.decode(vae.encode(frame)), frame)
            state = model.begin(picture)
            path = state.T_world_camera[-1:].repeat(8, 1, 1)
            clip = picture[None].repeat(8, 1, 1, 1)
            seen = model.perceiver.perceive(clip, path, state.camera, state.memory.project(path, state.camera), clip)
            figures[f"dynamic {photo}"] = float((seen.dynamic > 0.5).float().mean())
    print(json.dumps(figures) if args.json else "\n".join(f"{name:40} {value:.4g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
