"""Text encoders: the protocol, and the embedded tier's own over the small vocabulary of procedural captions.

Rows beyond the prompt are zero and take part in attention unmasked, as in the released model (FACTS: dropping them
changes the output).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

# Words people use for things the embedded vocabulary knows under another name; every value is a word of `worlds.VOCABULARY`.
SYNONYMS = {
    # things
    "sphere": "ball",
    "cube": "box",
    "couch": "sofa",
    "shrub": "bush",
    "bookcase": "bookshelf",
    "closet": "wardrobe",
    "painting": "picture",
    "wood": "wooden",
    "bricks": "brick",
    "tiles": "tiled",
    "wall": "walls",
    # colours
    "gray": "grey",
    "violet": "purple",
    # motion
    "roll": "rolls",
    "rolling": "rolls",
    "slide": "slides",
    "sliding": "slides",
    "moves": "slides",
    "moving": "slides",
    "bounce": "bounces",
    "bouncing": "bounces",
    "jumps": "bounces",
    "hops": "bounces",
    "swing": "swings",
    "swinging": "swings",
    "stand": "stands",
    "standing": "stands",
    "slow": "slowly",
    "gently": "slowly",
    "fast": "quickly",
    "quick": "quickly",
    "rapidly": "quickly",
    # directions
    "towards": "toward",
    "leftward": "left",
    "leftwards": "left",
    "rightward": "right",
    "rightwards": "right",
    "upward": "up",
    "upwards": "up",
    "downward": "down",
    "downwards": "down",
    "onto": "on",
}


def join_texts(*texts: str) -> str:
    """One prompt of several, such as what the world is like and what happens now; empty ones are left out."""
    return " . ".join(text.strip() for text in texts if text.strip())


class TextEncoder(Protocol):
    """Texts to rows of features for cross-attention."""

    def encode(self, texts: list[str]) -> torch.Tensor:
        """(B, rows, width) float; rows beyond each text are zero."""
        ...

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that carry no meaning for this encoder, in order, each once."""
        ...

    def too_long(self, *texts: str) -> str:
        """Empty when the texts, joined as the world's loop joins them, are read whole; otherwise how long they are and how much is read."""
        ...


@dataclass(frozen=True)
class CompactTextConfig:
    vocabulary: tuple[str, ...] = ()
    width: int = 128
    layers: int = 2
    heads: int = 4
    max_tokens: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocabulary", tuple(self.vocabulary))
        if len(set(self.vocabulary)) != len(self.vocabulary):
            raise ValueError("the vocabulary holds a word twice")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")


def numbered(vocabulary: tuple[str, ...]) -> dict[str, int]:
    """Token ids of words; 0 is padding."""
    return {word: i + 1 for i, word in enumerate(vocabulary)}


def word_ids(text: str, ids: dict[str, int]) -> tuple[list[int], list[str]]:
    """Token ids of a text's words, commas and stops, and the words that have none; synonyms count as what they stand for."""
    found, unknown = [], []
    for word in re.findall(r"[^\W_]+(?:[-'][^\W_]+)*|[.,]", text.lower()):
        known = word if word in ids else SYNONYMS.get(word, word)
        if known in ids:
            found.append(ids[known])
        elif word not in ".," and word not in unknown:
            unknown.append(word)
    return found, unknown


class CompactTextEncoder(nn.Module):
    """Word embeddings and a small pre-norm transformer, trained with the denoiser."""

    def __init__(self, config: CompactTextConfig):
        super().__init__()
        self.config = config
        self._ids = numbered(config.vocabulary)
        self.embedding = nn.Embedding(len(config.vocabulary) + 1, config.width, padding_idx=0)
        self.position = nn.Parameter(torch.randn(config.max_tokens, config.width) * 0.2)
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, 4 * config.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(config.width), enable_nested_tensor=False)

    def tokenize(self, text: str) -> tuple[list[int], list[str]]:
        """Token ids (cut to `max_tokens`) and the words that have none."""
        ids, unknown = self._read(text)
        return ids[: self.config.max_tokens], unknown

    def _read(self, text: str) -> tuple[list[int], list[str]]:
        return word_ids(text, self._ids)

    def unknown_words(self, text: str) -> list[str]:
        return self.tokenize(text)[1]

    def too_long(self, *texts: str) -> str:
        """See `TextEncoder.too_long`; words that are not known do not count."""
        count, most = len(self._read(join_texts(*texts))[0]), self.config.max_tokens
        return f"{count} known words, commas and stops, of which the model reads the first {most}" if count > most else ""

    def encode(self, texts: list[str]) -> torch.Tensor:
        """(B, max_tokens, width): one row per known word, then zeros."""
        device = self.position.device
        rows = [self.tokenize(text)[0] for text in texts]
        ids = torch.zeros(len(rows), self.config.max_tokens, dtype=torch.long, device=device)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        return self(ids)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (B, n), 0 for padding, to features (B, n, width), zero where padded."""
        used = ids > 0
        x = self.embedding(ids) + self.position
        # An empty text would leave attention nothing to look at: let such rows see their padding, then zero them.
        ignore = ~used & used.any(1, keepdim=True)
        return self.layers(x, src_key_padding_mask=ignore) * used.unsqueeze(-1)
