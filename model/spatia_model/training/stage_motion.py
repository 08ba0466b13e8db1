"""Training the motion planner: what the text says a thing does, as metres per frame.

People do not write as the worlds' captions do: clauses are dropped and change places, colours are left out where only one thing moves,
"the" stands for "a", how fast is not said. What a picture tells is not quite so either: depth is off by a tenth, colours by some. Four of
ten rows know no past.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from spatia_model.data.motions import MotionFolder
from spatia_model.generator.motion import MotionConfig, MotionPlanner, features
from spatia_model.training.loop import device_of
from spatia_model.worlds.captions import VERBS
from spatia_model.worlds.palette import MOVER_COLORS

MOVES = 0.1  # metres at the end of a clip from which a thing counts as moving


class MotionStage:
    """Distance between the way told and the true one.

    Args:
        batch: rows per step.
        past: share of rows whose past was seen.
        prompt: share of texts that follow a world's prompt, which says what moves there without saying where to.
    """

    name = "motion"

    def __init__(
        self,
        rows: MotionFolder,
        validation: MotionFolder,
        vocabulary: tuple[str, ...],
        config: MotionConfig | None = None,
        batch: int = 256,
        past: float = 0.6,
        prompt: float = 0.25,
    ):
        self.model: nn.Module = MotionPlanner(config or MotionConfig(vocabulary))
        self.rows, self.validation = rows, validation
        self.batch, self.past, self.prompt = batch, past, prompt

    def loss(self, rng: np.random.Generator, generator: torch.Generator, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        picks = torch.from_numpy(rng.integers(0, len(self.rows), self.batch))
        rows = {name: values[picks] for name, values in self.rows.rows.items()}
        told = [said_otherwise(self.rows.texts[k], rng, self.prompt) for k in picks.tolist()]
        texts, named = [text for text, _ in told], torch.tensor([known for _, known in told])
        seen = torch.from_numpy(rng.random(self.batch) < self.past)
        scale = torch.exp(0.1 * torch.randn(self.batch, 1, generator=generator))
        given = features(
            (rows["shade"] + 6 * torch.randn(rows["shade"].shape, generator=generator)).clamp(0, 255),
            rows["spread"] * scale[:, 0] * torch.exp(0.1 * torch.randn(self.batch, generator=generator)),
            rows["place"] * scale + 0.02 * torch.randn(rows["place"].shape, generator=generator),
            (rows["past"] * scale[..., None] + 0.02 * torch.randn(rows["past"].shape, generator=generator)) * seen[:, None, None],
            seen,
        )
        # Told nothing and shown nothing, a thing stays where it is: half of all ways would be a guess that is always wrong.
        way = torch.where((named | seen)[:, None, None], rows["way"] * scale[..., None], torch.zeros_like(rows["way"]))
        error = (self._ways(given, texts) - way.to(device_of(self.model))).norm(dim=-1).mean(1)
        return error.mean(), {"error": float(error.detach().mean())}

    def _ways(self, given: torch.Tensor, texts: list[str]) -> torch.Tensor:
        ids = torch.stack([self.model.ids(text) for text in texts])  # type: ignore[operator]
        ids = ids[:, : max(1, int((ids > 0).sum(1).max()))]  # padding takes no part in attention, only time
        device = device_of(self.model)
        with torch.autocast(device.type, enabled=False):  # so small that half precision saves nothing
            return self.model(given.to(device), ids.to(device))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Metres off at a clip's end, and the share of moving things that go the right way (within 45 degrees), told by text alone and
        with a past; metres that still things are moved by."""
        rows, texts = self.validation.rows, self.validation.texts
        way, figures = rows["way"][:, -1], {}
        moving = way.norm(dim=1) > MOVES
        never = (rows["way"].abs().amax((1, 2)) == 0) & (rows["past"].abs().amax((1, 2)) == 0)
        for name, seen in (("text", False), ("past", True)):
            watched = torch.full((len(texts),), seen)
            given = features(rows["shade"], rows["spread"], rows["place"], rows["past"] * float(seen), watched)
            guess = torch.cat([self._ways(given[i : i + 512], texts[i : i + 512]).cpu() for i in range(0, len(texts), 512)])[:, -1]
            figures[f"off_{name}"] = float((guess - way).norm(dim=1)[moving].mean())
            flat, true = guess[moving][:, [0, 2]], way[moving][:, [0, 2]]
            across = true.norm(dim=1) > MOVES
            figures[f"right_way_{name}"] = float((torch.cosine_similarity(flat, true)[across] > 0.707).float().mean())
            figures[f"still_{name}"] = float(guess[never].norm(dim=1).mean())
        return figures

    @torch.no_grad()
    def sample(self) -> np.ndarray:
        """Ways of 24 things that move, seen from above, ahead is up: the true one white, the one told by the text in the thing's colour."""
        rows, side, reach = self.validation.rows, 64, 1.0  # pixels, metres
        picks = (rows["way"][:, -1].norm(dim=1) > MOVES).nonzero()[:24, 0].tolist()
        told = {name: values[picks] for name, values in rows.items()}
        given = features(told["shade"], told["spread"], told["place"], told["past"] * 0, torch.zeros(len(picks)))
        ways = self._ways(given, [self.validation.texts[k] for k in picks]).cpu()
        sheet = np.zeros((4 * side, 6 * side, 3), np.uint8)
        for k in range(len(picks)):
            white = np.full(3, 255, np.uint8)
            for way, colour in ((told["way"][k], white), (ways[k], told["shade"][k].to(torch.uint8).numpy())):
                column = (side / 2 * (1 + way[:, 0] / reach)).long().clamp(1, side - 2) + k % 6 * side
                row = (side / 2 * (1 - way[:, 2] / reach)).long().clamp(1, side - 2) + k // 6 * side
                for y, x in zip(row.tolist(), column.tolist(), strict=True):
                    sheet[y - 1 : y + 2, x - 1 : x + 2] = colour
        return sheet


def said_otherwise(text: str, rng: np.random.Generator, prompt: float = 0.25) -> tuple[str, bool]:
    """A caption as somebody else might have put it, and whether it still says what moves how."""
    place, *clauses = text.split(" . ")
    if rng.random() < 0.1:
        return (place if rng.random() < 0.5 else ""), not clauses
    moving = [clause for clause in clauses if clause.split()[1] in MOVER_COLORS]
    if rng.random() < 0.3:
        clauses = [clauses[k] for k in rng.permutation(len(clauses))]
    if rng.random() < 0.4:
        clauses = [clause for clause in clauses if clause in moving]
    if len(moving) == 1 and rng.random() < 0.2:
        colour = moving[0].split()[1]
        clauses = [clause.replace(f" {colour} ", " ", 1) if clause is moving[0] or clause == moving[0] else clause for clause in clauses]
    if rng.random() < 0.3:
        clauses = [" ".join(["the", *clause.split()[1:]]) for clause in clauses]
    if rng.random() < 0.2:
        clauses = [clause.replace(" to the ", " ") for clause in clauses]
    if rng.random() < 0.25:
        clauses = [clause.replace(" slowly ", " ").replace(" quickly ", " ") for clause in clauses]
    if rng.random() < 0.5:
        clauses = [place, *clauses]
    if rng.random() < prompt:
        always = [" ".join([*clause.split()[:4], "from side to side"]) for clause in moving if clause.split()[3] in VERBS.values()]
        clauses = [place, *always, *clauses]
    return " . ".join(clauses), True
