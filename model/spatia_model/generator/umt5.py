"""The full tier's text encoder: UMT5-XXL (transformers), behind the same two methods as the embedded one."""

from __future__ import annotations

import html
import re
from collections import OrderedDict
from contextlib import nullcontext
from typing import Any

import torch

from spatia_model.generator.fitting import Fit, group_offload, visiting

ROWS = 512  # text rows that the denoiser was trained with
_KEPT = 64  # texts whose rows are kept; 4 MB each at full size


def clean(text: str) -> str:
    """As Wan does before tokenizing: mend broken characters, undo HTML escapes, one space between words.

    Raises:
        ModuleNotFoundError: ftfy is missing; gives the install line.
    """
    try:
        import ftfy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the 5B's prompts are cleaned with ftfy, which is not installed: pip install ftfy") from error
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip()


class UMT5TextEncoder:
    """Texts to `rows` rows; the rows beyond a text are zero and take part in attention unmasked (the model was trained so).

    Args:
        network: `UMT5EncoderModel`.
        tokenizer: its tokenizer.
        rows: of the result; longer texts are cut.
        device: where to compute.
        fit: how the network shares the device: it stays there, or visits it, whole or block by block, for a text it has not seen.
    """

    def __init__(self, network: Any, tokenizer: Any, rows: int = ROWS, device: str | torch.device = "cpu", fit: Fit | None = None):
        self.network, self.tokenizer, self.rows = network, tokenizer, rows
        self.device, self.fit = torch.device(device), fit or Fit()
        self._known: OrderedDict[str, torch.Tensor] = OrderedDict()
        if self.fit.offload == "none":
            network.to(self.device)
        elif self.fit.offload == "group":
            group_offload(network.encoder, self.device)

    def unknown_words(self, text: str) -> list[str]:
        """None: every text has a meaning for this encoder."""
        return []

    def too_long(self, *texts: str) -> str:
        """See `TextEncoder.too_long`."""
        joined = clean(" ".join(text.strip() for text in texts if text.strip()))
        count = len(self.tokenizer(joined, add_special_tokens=True).input_ids)
        return f"{count} tokens (pieces of words), of which the model reads the first {self.rows}" if count > self.rows else ""

    @torch.no_grad()
    def encode(self, texts: list[str]) -> torch.Tensor:
        """(B, rows, width) in the network's type, on `device`. Texts seen lately are not computed again."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            with visiting(self.network, self.device, self.fit) if self.fit.offload == "model" else nullcontext():
                for text in new:
                    self._known[text] = self._encode(text)
        for text in texts:
            self._known.move_to_end(text)
        found = torch.cat([self._known[text] for text in texts]).to(self.device)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return found

    def _encode(self, text: str) -> torch.Tensor:
        given = self.tokenizer(
            [clean(text)], padding="max_length", truncation=True, max_length=self.rows, add_special_tokens=True, return_tensors="pt"
        )
        mask = given.attention_mask.to(self.device)
        rows = self.network(input_ids=given.input_ids.to(self.device), attention_mask=mask).last_hidden_state
        used = int(mask.sum())
        return torch.cat([rows[:, :used], torch.zeros_like(rows[:, used:])], 1).cpu()
