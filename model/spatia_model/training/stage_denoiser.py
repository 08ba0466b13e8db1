"""Training the embedded denoiser and its text encoder: flow matching on windows of latents."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from spatia_model.config import MiniConfig
from spatia_model.data.latents import LatentFolder, read_window
from spatia_model.data.windows import Walk, WindowFolder
from spatia_model.evaluation.metrics import gradient_energy, psnr
from spatia_model.generator.conditioning import encode_references, pooled_control, to_frames, to_model
from spatia_model.generator.sampler import denoise
from spatia_model.generator.text import CompactTextConfig, CompactTextEncoder, join_texts
from spatia_model.generator.transformer import SpatiaTransformer
from spatia_model.generator.vae import CompactVideoVAE
from spatia_model.training.loop import device_of

MINI_TRANSFORMER = {
    "patch_size": (1, 4, 4),
    "num_attention_heads": 7,
    "attention_head_dim": 32,
    "in_channels": 64,
    "out_channels": 64,
    "text_dim": 128,
    "freq_dim": 128,
    "ffn_dim": 352,
    "num_layers": 7,
    "vace_layers": (0, 4),
    "vace_in_channels": 72,
    "control_in_main": True,
    "control_to_output": True,
    "output_gates": True,
    "detail_width": 88,
    "prediction": "sample",
}


class Generator(nn.Module):
    """Denoiser and text encoder as one trainable thing."""

    def __init__(self, transformer: dict, text: CompactTextConfig):
        super().__init__()
        self.transformer = SpatiaTransformer(**transformer).initialise()
        self.text = CompactTextEncoder(text)


class DenoiserStage:
    """Clean-sample prediction with conditions dropped at random; weights favour movers and what the memory lacks.

    From step `own_from` on (None: never) a share `own` of the batches are not true latents with noise but what the sampler itself makes
    of noise in its first of `own_steps` steps. With a few large steps the two differ: the sampler's half-way latents are smoother than
    true ones, and a model that has only seen the latter takes the noise in them for texture.
    """

    name = "denoiser"

    def __init__(
        self,
        latents: LatentFolder,
        validation: WindowFolder,
        vae: CompactVideoVAE,
        vocabulary: tuple[str, ...],
        mini: MiniConfig | None = None,
        transformer: dict | None = None,
        batch: int = 16,
        drop_text: float = 0.1,
        drop_memory: float = 0.08,
        history_noise: float = 0.08,
        own: float = 0.5,
        own_from: int | None = None,
        own_steps: int = 4,
    ):
        self.mini = mini or MiniConfig()
        self.model = Generator(transformer or MINI_TRANSFORMER, CompactTextConfig(vocabulary))
        self.latents, self.validation, self.batch = latents, validation, batch
        self.vae: CompactVideoVAE = vae.eval()
        self.drop_text, self.drop_memory, self.history_noise = drop_text, drop_memory, history_noise
        self.own, self.own_from, self.own_steps = own, own_from, own_steps
        self.known = 1 + (self.mini.history_frames - 1) // vae.temporal_factor
        with torch.inference_mode():  # control when there is no memory: nothing covered, all of it filled with grey
            black = torch.zeros(1, self.mini.window, self.mini.image_size, self.mini.image_size, 3, dtype=torch.uint8)
            blank = torch.zeros(black.shape[:-1])
            self.empty_control = pooled_control(self.vae, black, blank, blank)[0].clone()

    def draw(self, rng: np.random.Generator) -> tuple[dict[str, torch.Tensor], list[str], int]:
        """A batch with one number of references (0 to K)."""
        references = int(rng.choice(self.mini.max_references + 1, p=[0.3, 0.2, 0.2, 0.3])) if self.mini.max_references == 3 else 0
        rows, texts = [], []
        for _ in range(self.batch):
            tensors, prompt, text = self.latents.window(rng, references)
            channels = tensors["target"].shape[0]
            if rng.random() < self.drop_memory:
                moves = tensors["control"][channels + 4 :].clone()
                tensors["control"] = self.empty_control.clone()
                tensors["control"][channels + 4 :] = moves
                tensors["uncovered"] = torch.full_like(tensors["uncovered"], 255)
            if rng.random() < 0.1:
                tensors["control"] = torch.cat([tensors["control"][: channels + 4], torch.zeros_like(tensors["control"][channels + 4 :])])
            rows.append(tensors)
            texts.append("" if rng.random() < self.drop_text else join_texts(prompt if rng.random() < 0.5 else "", text))
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return batch, texts, references

    def loss(self, rng: np.random.Generator, generator: torch.Generator, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        batch, texts, references = self.draw(rng)
        device = device_of(self.model)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        data, b = batch["target"], self.batch
        refs = batch["references"][:, :references].transpose(1, 2)  # (B, C, R, h, w)
        sigma = torch.sigmoid(torch.randn(b, generator=generator) * 1.2 + 0.4).clamp(0.005, 1)
        first = torch.rand(b, generator=generator) < 0.12  # the first step of a few counts most
        sigma = torch.where(first, torch.ones(()), sigma).to(device)
        taken = self._steps_taken(rng, step)
        if taken:
            sigma = torch.full_like(sigma, 1 - taken / self.own_steps)
        s = sigma.view(-1, 1, 1, 1, 1)
        noise = torch.randn(data.shape, generator=generator).to(device)
        noised = (1 - s) * data + s * noise
        past = self._noised_past(data, generator)
        noised[:, :, : self.known] = past
        x = torch.cat([refs, noised], 2)
        times = torch.zeros(b, x.shape[2], device=device)
        times[:, references + self.known :] = 1000 * sigma[:, None]
        context = self.model.text.encode(texts)
        if taken:
            with torch.no_grad():
                some = refs if references else None
                halfway = sample_window(self.model.transformer, noise, past, some, context, batch["control"], self.own_steps, stop=taken)
            x = torch.cat([refs, halfway], 2)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel's backward is slower at these few tokens
            out = self.model.transformer(x, times, context, batch["control"], references).float()
        error = (out - x_target(refs, data))[:, :, references + self.known :].square().mean(1)  # (B, F, h, w)
        weight = 1 + 4 * batch["moving"][:, self.known :] / 255 + 0.5 * batch["uncovered"][:, self.known :] / 255
        weight = weight / (sigma.square() + 0.1).view(-1, 1, 1, 1)
        covered = batch["uncovered"][:, self.known :] < 64
        figures = {"mse_covered": float(error.detach()[covered].mean()), "mse_uncovered": float(error.detach()[~covered].mean())}
        return (error * weight).mean(), {k: v for k, v in figures.items() if np.isfinite(v)}

    def _noised_past(self, data: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The known latents, each sample's with a little noise: a walk's history was generated, too."""
        level = self.history_noise * torch.rand(len(data), 1, 1, 1, 1, generator=generator).to(data)
        past = data[:, :, : self.known]
        return past + level * torch.randn(past.shape, generator=generator).to(data)

    def last_step(self, batch: dict[str, torch.Tensor], texts: list[str], references: int, generator: torch.Generator) -> torch.Tensor:
        """Clean latents (B, C, F, h, w) as the sampler's last step draws them, differentiable; the steps before it are not."""
        data, steps = batch["target"], self.mini.steps
        refs = batch["references"][:, :references].transpose(1, 2)
        past = self._noised_past(data, generator)
        noise = torch.randn(data.shape, generator=generator).to(data)
        context = self.model.text.encode(texts)
        x = torch.cat([past, noise[:, :, self.known :]], 2)
        if steps > 1:
            with torch.no_grad():
                some = refs if references else None
                x = sample_window(self.model.transformer, noise, past, some, context, batch["control"], steps, stop=steps - 1)
        times = torch.zeros(len(data), references + x.shape[2], device=x.device)
        times[:, references + self.known :] = 1000 / steps
        with sdpa_kernel(SDPBackend.MATH):
            out = self.model.transformer(torch.cat([refs, x], 2), times, context, batch["control"], references).float()
        return out[:, :, references:]

    def _steps_taken(self, rng: np.random.Generator, step: int) -> int:
        """How many sampler steps come before the one that this batch trains; 0: noised true latents."""
        if self.own_from is None or step < self.own_from or rng.random() >= self.own:
            return 0
        return int(rng.integers(1, self.own_steps))

    @torch.no_grad()
    def generate(self, walk: Walk, clip: int, steps: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """One clip of a walk as the model draws it: truth and frames (T, H, W, 3) uint8, mask, moving (T, H, W) bool, projection rgb."""
        rgb, dynamic, projection = read_window(walk, clip, self.mini)
        h, device = self.mini.history_frames, device_of(self.model)
        vae = self.vae.to(device)
        known = dynamic.clone()
        known[h:] = 0
        if clip == 0 and walk.overlooked:
            known[:] = 0
        control = pooled_control(vae, *(part[None].to(device) for part in (projection.rgb, projection.mask, known)))
        past = to_model(rgb[None, :h].to(device))
        history = vae.encode(past)
        ids = walk.references(clip)
        refs = encode_references(vae, torch.cat([walk.rgb(i, i + 1) for i in ids]).to(device))[None] if ids else None
        context = self.model.text.encode([walk.captions[clip]])
        noise = torch.randn(1, history.shape[1], *control.shape[2:], generator=torch.Generator().manual_seed(seed))
        latents = sample_window(self.model.transformer, noise.to(device), history, refs, context, control, steps)
        frames = to_frames(vae.decode(latents, self.mini.frames_per_clip, past[:, :, -1]))[0].cpu()
        return rgb[h:], frames, projection.mask[h:], dynamic[h:] > 0.5, projection.rgb[h:]

    def _validation(self, i: int) -> tuple[torch.Tensor, ...]:
        walk = self.validation.open(i % len(self.validation))
        return self.generate(walk, i % len(walk.captions), self.mini.steps)

    def validate(self) -> dict[str, float]:
        rows: dict[str, list[float]] = {n: [] for n in ("covered", "uncovered", "moving", "energy_covered", "energy_uncovered", "raw")}
        for i in range(24):
            truth, frames, mask, moving, shown = self._validation(i)
            a, b = frames.permute(0, 3, 1, 2).float(), truth.permute(0, 3, 1, 2).float()
            m = mask.unsqueeze(1)
            rows["covered"].append(psnr(a, b, m, 255))
            rows["uncovered"].append(psnr(a, b, ~m, 255))
            rows["moving"].append(psnr(a, b, moving.unsqueeze(1), 255))
            rows["raw"].append(psnr(shown.permute(0, 3, 1, 2), b, m, 255))
            rows["energy_covered"].append(gradient_energy(a, m) / gradient_energy(b, m))
            if (~m).float().mean() > 0.02:
                rows["energy_uncovered"].append(gradient_energy(a, ~m) / gradient_energy(b, ~m))
        return {name: float(np.nanmean(values)) for name, values in rows.items()}

    def sample(self) -> np.ndarray:
        rows = []
        for i in range(8):
            truth, frames, _, _, shown = self._validation(i)
            rows.append(torch.cat([truth[3], shown[3], frames[3], truth[7], shown[7], frames[7]], 1))
        return torch.cat(rows, 0).numpy()


def x_target(references: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    return torch.cat([references, data], 2)


def sample_window(transformer, noise, history, references, context, control, steps, **options) -> torch.Tensor:
    """Denoise one window, conditions prepared once. Returns history and target latents."""
    count = 0 if references is None else references.shape[2]
    conditions = transformer.prepare(context, control, count)

    def predict(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return transformer(x, times, conditions=conditions)

    return denoise(predict, noise, history, references, steps=steps, shift=1.0, solver="euler", prediction="sample", **options)
