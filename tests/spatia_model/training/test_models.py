"""What a recipe can start from: folders in diffusers' layout, with a control branch or without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from spatia_model.generator.transformer import SpatiaTransformer
from spatia_model.training.models import is_control, load_parts

TINY = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 5,
}


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> Path:
    """A base as Wan2.2-TI2V-5B-Diffusers is laid out, very small."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wan")
    WanTransformer3DModel(**TINY, cross_attn_norm=True, qk_norm="rms_norm_across_heads").save_pretrained(folder / "transformer")
    return folder


def test_a_base_without_control_gets_a_branch_that_changes_nothing(wan):
    parts = load_parts(str(wan))
    transformer = parts.transformer.eval()
    assert tuple(transformer.config.vace_layers) == (0, 4) and transformer.config.vace_in_channels == 8
    assert parts.text is None and parts.vae is None and parts.sampler["solver"] == "unipc"
    base = WanTransformer3DModel.from_pretrained(wan, subfolder="transformer").eval()
    own = transformer.state_dict()
    assert all(torch.equal(own[name], value) for name, value in base.state_dict().items())
    assert {name for name in own if name not in base.state_dict()} == {name for name in own if is_control(name)}
    x, text = torch.randn(1, 4, 3, 4, 4), torch.randn(1, 2, 16)
    with torch.no_grad():
        same = base(x, torch.full((1,), 500.0), text, return_dict=False)[0]
        times = torch.full((1, 3), 500.0)
        assert torch.allclose(transformer(x, times, text), same, atol=1e-5)
        assert torch.equal(transformer(x, times, text, torch.randn(1, 8, 3, 4, 4)), transformer(x, times, text))


def test_a_whole_denoiser_is_taken_as_it_is(tmp_path):
    torch.manual_seed(1)
    made = SpatiaTransformer(**TINY, vace_layers=(0, 4), vace_in_channels=8)
    made.save_pretrained(tmp_path / "transformer")
    back = load_parts(str(tmp_path)).transformer
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in made.state_dict().items())


def test_a_denoiser_with_tensors_missing_is_refused(wan, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text((wan / "transformer" / "config.json").read_text())
    tensors = load_file(wan / "transformer" / "diffusion_pytorch_model.safetensors")
    tensors.pop("blocks.3.attn1.to_q.weight")
    save_file(tensors, tmp_path / "transformer" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing: blocks.3.attn1.to_q.weight"):
        load_parts(str(tmp_path))


def test_names_that_are_no_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no model 'nothing'"):
        load_parts("nothing")
    assert json.loads(json.dumps(TINY))["num_layers"] == 5
