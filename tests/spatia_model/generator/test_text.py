from __future__ import annotations

import pytest
import torch

from spatia_model.generator.text import SYNONYMS, CompactTextConfig, CompactTextEncoder, join_texts
from spatia_model.worlds import VOCABULARY


@pytest.fixture(scope="module")
def encoder() -> CompactTextEncoder:
    torch.manual_seed(2_000_000)
    encoder = CompactTextEncoder(CompactTextConfig(VOCABULARY, width=16, layers=2, heads=2, max_tokens=12))
    return encoder.eval().requires_grad_(False)


def words(encoder: CompactTextEncoder, text: str) -> list[str]:
    return [encoder.config.vocabulary[i - 1] for i in encoder.tokenize(text)[0]]


def test_words_are_split_and_lowered(encoder):
    assert words(encoder, "A red Ball, rolls\nto the  LEFT.") == ["a", "red", "ball", ",", "rolls", "to", "the", "left", "."]
    assert encoder.unknown_words("A red Ball, rolls to the LEFT.") == []


def test_unknown_words_are_told_once_and_in_order(encoder):
    text = "a purring well-fed cat's cat's ball purring, _Ärger_ 7! ?"
    assert encoder.unknown_words(text) == ["purring", "well-fed", "cat's", "ärger", "7"]
    assert words(encoder, text) == ["a", "ball", ","]


def test_every_synonym_leads_to_a_known_word_and_is_needed(encoder):
    assert SYNONYMS.keys() & set(VOCABULARY) == set(), "a word of the vocabulary needs no synonym"
    for word, known in SYNONYMS.items():
        assert known in VOCABULARY, f"{word} stands for {known}, which the vocabulary lacks"
        assert words(encoder, word) == [known]
    assert encoder.unknown_words(" ".join(SYNONYMS)) == []
    assert torch.equal(encoder.encode(["a gray sphere rolling towards the couch"]), encoder.encode(["a grey ball rolls toward the sofa"]))


def test_rows_beyond_the_prompt_are_zero(encoder):
    rows = encoder.encode(["a red ball", "the room"])
    assert rows.shape == (2, 12, 16)
    assert rows[0, 3:].abs().max() == 0 and rows[1, 2:].abs().max() == 0
    assert (rows[0, :3].abs().sum(-1) > 0).all() and (rows[1, :2].abs().sum(-1) > 0).all()


def test_padding_and_company_change_nothing(encoder):
    ids, _ = encoder.tokenize("a red ball")
    alone = encoder.layers(encoder.embedding(torch.tensor([ids])) + encoder.position[:3])  # no padding at all
    rows = encoder.encode(["a red ball rolls to the left", "a red ball", ""])
    torch.testing.assert_close(rows[1:2, :3], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows[1:2], encoder.encode(["a red ball"]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(rows[0, :3], rows[1, :3], atol=1e-3)  # words do see each other


@pytest.mark.parametrize("text", ["", "   ", "qwertz uiop"])
def test_texts_without_a_known_word_are_finite_and_zero(encoder, text):
    rows = encoder.encode([text, "a red ball"])
    assert torch.isfinite(rows).all() and rows[0].abs().max() == 0 and rows[1].abs().max() > 0


def test_long_texts_are_cut(encoder):
    text = "red blue " * 100
    ids, unknown = encoder.tokenize(text)
    assert len(ids) == 12 and unknown == []
    assert torch.equal(encoder.encode([text]), encoder.encode(["red blue " * 6]))
    assert encoder.too_long(text) == "200 known words, commas and stops, of which the model reads the first 12"
    assert "13 known" in encoder.too_long("red " * 9, "blue ball left") and encoder.too_long("red " * 9, "blue ball") == ""
    assert encoder.too_long("red " * 12, "") == encoder.too_long("red " * 12 + "qwertz") == encoder.too_long() == ""


def test_word_order_counts(encoder):
    assert not torch.allclose(encoder.encode(["red ball blue box"]), encoder.encode(["blue ball red box"]), atol=1e-3)


def test_gradients_reach_every_parameter():
    encoder = CompactTextEncoder(CompactTextConfig(("a", "b"), width=8, layers=1, heads=2, max_tokens=3))
    (encoder.encode(["a b a"]) * torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(2_000_000))).sum().backward()
    for name, p in encoder.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name
    assert encoder.embedding.weight.grad is not None and encoder.embedding.weight.grad[0].abs().max() == 0  # padding stays


def test_texts_are_joined_without_empty_ones():
    assert join_texts("a room", "a ball rolls") == "a room . a ball rolls"
    assert join_texts(" a room ", " ") == "a room"
    assert join_texts("", "") == ""


def test_bad_configs_are_refused():
    with pytest.raises(ValueError, match="a word twice"):
        CompactTextConfig(("a", "b", "a"))
    with pytest.raises(ValueError, match="width 10 must be a multiple of heads 4"):
        CompactTextConfig(("a",), width=10)
