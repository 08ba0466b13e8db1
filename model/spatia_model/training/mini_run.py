"""The stages of `spatia train mini`, in order. Each reads what the ones before left in the run's folder.

runs/NAME/walks, validation       rendered worlds
runs/NAME/windows, ...-validation the memory's side of them
runs/NAME/vae.pt, redraw.pt, decoder.pt, perception.pt, first.pt, again.pt, denoiser.pt, sharpen.pt, refiner.pt, motion.pt   checkpoints
runs/NAME/*.png, *.jsonl          pictures and figures of validations
runs/NAME/latents                 windows as latents
runs/NAME/motions, ...-validation what the motion planner learns from
runs/NAME/model                   the trained folder
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch

from spatia_model.config import MiniConfig
from spatia_model.data.latents import LatentFolder, make_latents
from spatia_model.data.motions import MotionFolder, make_motions
from spatia_model.data.procedural import ClipFolder, make_walks
from spatia_model.data.windows import WindowFolder, make_windows
from spatia_model.generator.motion import MotionConfig, MotionPlanner
from spatia_model.generator.pipeline import SamplerOptions
from spatia_model.generator.vae import CompactVideoVAE
from spatia_model.model_folder import save_mini
from spatia_model.perception.compact import CompactPerception, CompactPerceptionConfig
from spatia_model.training.cli import VALIDATION_SEED, _earlier, _numbers, loop_config
from spatia_model.training.loop import LoopConfig, fit
from spatia_model.training.pictures import PicturePool
from spatia_model.training.stage_decoder import DecoderStage
from spatia_model.training.stage_denoiser import DenoiserStage
from spatia_model.training.stage_motion import MotionStage
from spatia_model.training.stage_perception import PerceptionStage
from spatia_model.training.stage_refiner import Pair, RefinerStage
from spatia_model.training.stage_sharpen import SharpenStage
from spatia_model.training.stage_vae import VAEStage, measure_latents
from spatia_model.training.starting import start_from
from spatia_model.worlds import VOCABULARY

MINI = MiniConfig(surroundings=True)
FIRST = CompactPerceptionConfig(core=(224, 10), twice=True)  # a world has one first picture: there is time for it
PERCEPTION = CompactPerceptionConfig(extends=True, by_looks=True, first=FIRST)
PICTURES = "pictures.npy"
WATCHED_CLIPS = 2  # one without, one with a past that shows how things move
SHARPNESS = 0.2  # how far weights go from exact pictures to sharp ones; between the two there is a way (ESRGAN, network interpolation)
VIEWS = 6  # of each world of which only first pictures are taken
# Momentum is short: what a critic wants changes with every step.
AGAINST_CRITIC = LoopConfig(lr=4e-4, warmup=30, betas=(0.5, 0.95), ema=0.99)


def data(out: Path, args: argparse.Namespace) -> None:
    """Render worlds, run the map along them, draw pictures."""
    make_walks(out / "validation", range(VALIDATION_SEED, VALIDATION_SEED + args.validation_worlds), args.clips, MINI, args.processes)
    make_windows(out / "validation", out / "windows-validation", MINI, args.processes)
    PicturePool(out / PICTURES, args.pictures)
    first = args.seed + args.worlds
    make_walks(out / "walks", range(args.seed, first), args.clips, MINI, args.processes)
    make_walks(out / "walks", range(first, first + args.watched), WATCHED_CLIPS, MINI, args.processes, "watch")
    make_walks(out / "views", range(first + args.watched, first + args.watched + args.views), VIEWS, MINI, args.processes, "views")
    make_windows(out / "walks", out / "windows", MINI, args.processes)


def vae(out: Path, args: argparse.Namespace) -> None:
    clips = ClipFolder(out / "walks")
    stage = VAEStage(clips, ClipFolder(out / "validation"), PicturePool(out / PICTURES))
    fit(stage, loop_config(args, "vae", LoopConfig(steps=3000, lr=0.006, optimizer="muon", validate_every=500)), out, args.device)
    measure_latents(stage.model, clips, seed=args.seed)
    _save_final(stage.model, out)


def _save_final(model: CompactVideoVAE, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f"vae-final.partial{os.getpid()}"  # every process of a distributed run writes the same
    torch.save(model.state_dict(), temporary)
    os.replace(temporary, out / "vae-final.pt")


def redraw(out: Path, args: argparse.Namespace) -> None:
    """The autoencoder again, longer, its latents kept near what they are: those made before stay valid."""
    kept = kept_vae(out, args.start_from)
    stage = VAEStage(
        ClipFolder(out / "walks"),
        ClipFolder(out / "validation"),
        PicturePool(out / PICTURES),
        batch=(4, 1, 2),  # stills are drawn far better than clips by then
        kl=0.0,
        keeps=kept,
    )
    fit(stage, loop_config(args, "redraw", LoopConfig(steps=3000, lr=0.004, optimizer="muon", validate_every=500)), out, args.device)


def kept_vae(out: Path, earlier: Path | None) -> CompactVideoVAE:
    """The autoencoder whose latents `redraw` keeps: of stage `vae`; where that never ran, of the model that the run starts from."""
    model = CompactVideoVAE().eval().requires_grad_(False)
    folder = _earlier(earlier, "redraw")
    if not (out / "vae-final.pt").exists() and folder and Path(folder).is_dir():
        start_from(Path(folder), model, "redraw")
        _save_final(model, out)
    model.load_state_dict(_read(out / "vae-final.pt", "vae"))
    return model


def decoder(out: Path, args: argparse.Namespace) -> None:
    """The decoder alone, against a critic: latents stay valid."""
    stage = DecoderStage(load_vae(out), ClipFolder(out / "walks"), ClipFolder(out / "validation"), PicturePool(out / PICTURES))
    fit(stage, loop_config(args, "decoder", replace(AGAINST_CRITIC, steps=400, lr=1e-4, validate_every=200)), out, args.device)


def load_vae(out: Path) -> CompactVideoVAE:
    """The trained autoencoder: of stage `redraw`, and SHARPNESS of the way from there to that of `decoder`, once these have run."""
    model = kept_vae(out, None)
    if (out / "redraw.pt").exists():
        model.load_state_dict(_read(out / "redraw.pt", "redraw")["average"])
    if (out / "decoder.pt").exists():
        sharp = _part(_read(out / "decoder.pt", "decoder")["average"], "vae.")
        model.load_state_dict({name: torch.lerp(value, sharp[name], SHARPNESS) for name, value in model.state_dict().items()})
    return model


def _read(path: Path, stage: str) -> dict:
    if not path.exists():
        raise ValueError(f"{path} is missing: run the stage before it first (spatia train mini --stage {stage})")
    return torch.load(path, map_location="cpu", weights_only=True)


def _part(weights: dict, prefix: str) -> dict:
    """The weights of one of the networks that a checkpoint holds."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def perception(out: Path, args: argparse.Namespace) -> None:
    """The perceiver that runs with every clip. It sees first pictures, too, from which it learns what things look like."""
    _perceive(out, args, replace(PERCEPTION, first=None), 3)


def first(out: Path, args: argparse.Namespace) -> None:
    """The perceiver of first pictures. It begins with the other's weights unless told otherwise."""
    _perceive(out, args, FIRST, 1, only="first")


def again(out: Path, args: argparse.Namespace) -> None:
    """The perceiver that runs with every clip, once more: with all but first pictures, which have a network of their own."""
    _perceive(out, args, replace(PERCEPTION, first=None), 1, only="again")


def _perceive(out: Path, args: argparse.Namespace, config: CompactPerceptionConfig, stills: int, only: str = "") -> None:
    windows = WindowFolder(out / "walks", out / "windows")
    validation = WindowFolder(out / "validation", out / "windows-validation")
    views = ClipFolder(out / "views") if any((out / "views").glob("*.safetensors")) else None
    stage = PerceptionStage(windows, validation, PicturePool(out / PICTURES), config, views=views, stills=stills, only=only)
    stage.batch = int(_numbers(args.batch, "batch").get(stage.name, 12))
    settings = LoopConfig(steps=3000, lr=0.01, optimizer="muon", validate_every=500, start_from=_earlier(out, stage.name))
    fit(stage, loop_config(args, stage.name, settings), out, args.device)


def latents(out: Path, args: argparse.Namespace) -> None:
    make_latents(WindowFolder(out / "walks", out / "windows"), out / "latents", load_vae(out), MINI, args.processes)


def denoiser(out: Path, args: argparse.Namespace) -> None:
    stage = denoiser_stage(out, int(_numbers(args.batch, "batch").get("denoiser", 16)))
    config = loop_config(args, "denoiser", LoopConfig(steps=8000, lr=1e-3, warmup=200, validate_every=1000))
    stage.own_from = config.steps // 2
    fit(stage, config, out, args.device)


def sharpen(out: Path, args: argparse.Namespace) -> None:
    stage = denoiser_stage(out, int(_numbers(args.batch, "batch").get("sharpen", 8)))
    stage.model.load_state_dict(_read(out / "denoiser.pt", "denoiser")["average"])
    judged = SharpenStage(stage)
    if (out / "decoder.pt").exists():  # its critic knows blurred pictures from sharp ones already
        weights = _read(out / "decoder.pt", "decoder")["average"]
        judged.model.critic.load_state_dict(_part(weights, "critic."))
    fit(judged, loop_config(args, "sharpen", replace(AGAINST_CRITIC, steps=800, ema=0.98, validate_every=200)), out, args.device)


def denoiser_stage(out: Path, batch: int = 16) -> DenoiserStage:
    validation = WindowFolder(out / "validation", out / "windows-validation")
    return DenoiserStage(LatentFolder(out / "latents"), validation, load_vae(out), VOCABULARY, MINI, batch=batch)


def refiner(out: Path, args: argparse.Namespace) -> None:
    stage = RefinerStage(WindowFolder(out / "walks", out / "windows"), trained_denoiser(out))
    fit(stage, loop_config(args, "refiner", LoopConfig(steps=1200, lr=1e-3, ema=0.99, validate_every=300)), out, args.device)


def trained_denoiser(out: Path) -> DenoiserStage:
    """The denoiser stage with its averaged weights; those of stage `sharpen` once that has run."""
    stage = denoiser_stage(out)
    weights = _read(out / "denoiser.pt", "denoiser")["average"]
    if (out / "sharpen.pt").exists():
        weights = _part(_read(out / "sharpen.pt", "sharpen")["average"], "generator.")
    stage.model.load_state_dict(weights)
    stage.model.eval().requires_grad_(False)
    return stage


def motions(out: Path, args: argparse.Namespace) -> None:
    """What the planner learns from; rows of a few worlds a file, nothing is rendered but first pictures."""
    make_motions(out / "motions", range(args.seed, args.seed + args.worlds), MINI, args.processes)
    seeds = range(VALIDATION_SEED, VALIDATION_SEED + args.validation_worlds)
    make_motions(out / "motions-validation", seeds, MINI, args.processes)


def motion(out: Path, args: argparse.Namespace) -> None:
    stage = MotionStage(MotionFolder(out / "motions"), MotionFolder(out / "motions-validation"), VOCABULARY)
    fit(stage, loop_config(args, "motion", LoopConfig(steps=6000, lr=2e-3, ema=0.998, validate_every=1000)), out, args.device)


def export(out: Path, args: argparse.Namespace) -> None:
    """Put the averaged weights of all stages into one folder that `WorldModel.from_pretrained` opens."""
    generator = trained_denoiser(out).model
    perceiver = CompactPerception(PERCEPTION)
    known, new = (_read(out / f"{stage}.pt", stage)["average"] for stage in ("again", "first"))
    perceiver.load_state_dict({**known, **{f"first.{name}": value for name, value in new.items()}})
    planner = MotionPlanner(MotionConfig(VOCABULARY))
    planner.load_state_dict(_read(out / "motion.pt", "motion")["average"])
    pair = Pair(None)
    pair.load_state_dict(_read(out / "refiner.pt", "refiner")["average"])
    options = SamplerOptions(steps=MINI.steps)
    drawing = (load_vae(out), generator.transformer, generator.text)
    save_mini(out / "model", MINI, options, *drawing, perceiver, pair.refiner, planner)
