import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spatia_model.generator.checkpoint import (
    ROW_SCALE,
    CheckpointError,
    from_eight_bits,
    load_official,
    load_weights,
    read_tensors,
    save_weights,
    sha256,
    to_eight_bits,
    verify_checksum,
    verify_folder,
)
from spatia_model.generator.names import BLOCK_NAMES, TOP_NAMES, to_diffusers, to_official
from spatia_model.generator.transformer import SpatiaTransformer
from tests.spatia_model.generator import reference_transformer as reference
from tests.spatia_model.generator.test_transformer import SEED, TINY, build

MANIFESTS = Path(__file__).parents[3] / "../shared/parity"


def test_names_go_both_ways():
    assert to_diffusers("vace_blocks.7.before_proj.bias") == "vace_blocks.7.proj_in.bias"
    assert to_diffusers("blocks.12.norm3.weight") == "blocks.12.norm2.weight"
    assert to_diffusers("head.modulation") == "scale_shift_table"
    assert to_diffusers("blocks.3.modulation") == "blocks.3.scale_shift_table"
    assert to_diffusers("blocks.3.ffn.2") == "blocks.3.ffn.net.2"
    official = [f"{prefix}.{name}.weight" for prefix in ("blocks.3", "vace_blocks.0") for name in BLOCK_NAMES] + list(TOP_NAMES)
    assert [to_official(to_diffusers(name)) for name in official] == official
    for name in ("blocks.0.norm2.weight", "head", "blocks.0.attn1.to_q.weight", "blocks.x.ffn.0.weight"):
        with pytest.raises(ValueError, match=name):
            to_diffusers(name)
    with pytest.raises(ValueError, match="control_gate"):
        to_official("control_gate")


def test_the_released_model_has_the_manifests_names_and_shapes():
    if not MANIFESTS.is_dir():
        pytest.skip("the manifests of the released checkpoints aren't here")
    wanted = {}
    for part in ("base_dit", "control"):
        wanted.update(json.loads((MANIFESTS / f"manifest_{part}.json").read_text()))
    with torch.device("meta"):
        model = SpatiaTransformer.wan22_ti2v_5b()
    found = {to_official(name): list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == wanted
    assert len(found) == 825 + 236
    sizes = [sum(p.numel() for n, p in model.named_parameters() if n.startswith("vace") == control) for control in (False, True)]
    assert sizes == [4_999_787_712, 1_395_398_656]
    for key in json.loads((MANIFESTS / "manifest_lora_expected.json").read_text())["keys"]:
        module = model.get_submodule(to_diffusers(key.removeprefix("pipe.dit.").split(".lora_")[0]))
        assert isinstance(module, nn.Linear)


def test_official_weights_fill_a_meta_model_from_files_and_mappings(tmp_path):
    weights = reference.random_weights(TINY, SEED)
    base = {name: tensor for name, tensor in weights.items() if not name.startswith("vace")}
    control = {name: tensor for name, tensor in weights.items() if name.startswith("vace")}
    save_file(base, tmp_path / "base.safetensors")
    with torch.device("meta"):
        model = build()
    load_official(model, [tmp_path / "base.safetensors", control])
    assert {to_official(name) for name in model.state_dict()} == set(weights)
    assert all(torch.equal(tensor, weights[to_official(name)]) for name, tensor in model.state_dict().items())
    low = build()
    load_official(low, [weights], torch.bfloat16)
    with pytest.raises(CheckpointError, match="twice"):
        load_official(model, [weights, control])
    with pytest.raises(CheckpointError, match="isn't the released architecture"):
        load_official(build(control_in_main=True), [weights])


def test_a_missing_extra_or_misshapen_tensor_is_named(tmp_path):
    weights = reference.random_weights(TINY, SEED)
    name = "blocks.1.ffn.2.weight"
    cases = [
        ({k: v for k, v in weights.items() if k != name}, f"missing: {name}"),
        ({**weights, "blocks.1.extra.weight": torch.ones(1)}, "extra: blocks.1.extra.weight"),
        ({**weights, name: weights[name][:, :3]}, f"{name} is"),
    ]
    for tensors, message in cases:
        with pytest.raises(CheckpointError, match=message):
            load_official(build(), [tensors])
    module, path = nn.Linear(2, 3), tmp_path / "w.safetensors"
    own = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    for tensors, message in [
        ({"weight": own["weight"]}, "missing: bias"),
        ({**own, "other": torch.ones(3)}, "extra: other"),
        ({**own, "bias": torch.ones(4)}, "misshapen: bias"),
    ]:
        save_file(tensors, path)
        before = module.weight.clone()
        with pytest.raises(CheckpointError, match=message):
            load_weights(module, path)
        assert torch.equal(module.weight, before)


def test_weights_round_trip_in_half_precision(tmp_path):
    path = tmp_path / "deep" / "w.safetensors"
    module: Any = nn.BatchNorm1d(3)
    other: Any = nn.BatchNorm1d(3)
    module(torch.randn(5, 3))
    digest = save_weights(module, path)
    assert digest == sha256(path)
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]
    assert load_file(path)["running_mean"].dtype == torch.float16
    load_weights(other, path)
    assert other.running_mean.dtype == torch.float32
    assert torch.equal(other.running_mean, module.running_mean.half().float())
    assert other.num_batches_tracked == 1  # integers are kept
    save_weights(module, path, None)
    load_weights(other, path)
    assert torch.equal(other.running_mean, module.running_mean)


def test_saving_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "w.safetensors"
    module = nn.Linear(2, 2)
    save_weights(module, path)
    digest = sha256(path)
    with torch.no_grad():
        module.weight[0, 0] = 1e6  # too large for float16
    with pytest.raises(CheckpointError, match="weight.*finite"):
        save_weights(module, path)
    assert sha256(path) == digest
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    module = nn.Linear(8, 8)
    digest = save_weights(module, path)
    whole = path.read_bytes()
    (tmp_path / "config.json").write_text(json.dumps({"sha256": {"w.safetensors": digest}, "kind": "test"}))
    assert verify_folder(tmp_path)["kind"] == "test"

    path.write_bytes(whole[:-7])
    with pytest.raises(CheckpointError, match="cut short"):
        load_weights(module, path)
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    path.write_bytes(bytes(flipped))
    load_weights(module, path)  # a flipped bit of a value can't be seen in the format,
    with pytest.raises(CheckpointError, match="SHA-256"):  # but it can in the checksum
        verify_checksum(path, digest)
    with pytest.raises(CheckpointError, match="SHA-256"):
        verify_folder(tmp_path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(CheckpointError, match="fetch it again"):
        load_weights(module, path)
    path.unlink()
    for call in (lambda: load_weights(module, path), lambda: verify_checksum(path, digest), lambda: verify_folder(tmp_path)):
        with pytest.raises(CheckpointError, match="no such file"):
            call()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="sha256"):
        verify_folder(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        verify_folder(tmp_path / "nowhere")


def test_eight_bits_equal_a_loop():
    generator = torch.Generator().manual_seed(SEED)
    weights = {
        "conv": torch.randn(5, 3, 2, 2, generator=generator) * torch.tensor([1e-4, 0.1, 1.0, 30.0, 0.0])[:, None, None, None],
        "matrix": torch.randn(3, 40, generator=generator),
        "small": torch.randn(2, 2, generator=generator),
        "vector": torch.randn(64, generator=generator),
        "count": torch.arange(60).view(3, 20),
    }
    stored = to_eight_bits(weights, smallest=50)
    assert stored.keys() == weights.keys() | {"conv" + ROW_SCALE, "matrix" + ROW_SCALE}
    read = from_eight_bits(stored)
    assert read.keys() == weights.keys()
    for name in ("small", "vector", "count"):
        assert torch.equal(read[name], weights[name]) and read[name].dtype == weights[name].dtype
    for name in ("conv", "matrix"):
        assert stored[name].dtype == torch.int8 and read[name].dtype == torch.float32
        for row, ints, found in zip(weights[name], stored[name], read[name], strict=True):
            step = max(abs(v) for v in row.flatten().tolist()) / 127
            for value, i, back in zip(row.flatten().tolist(), ints.flatten().tolist(), found.flatten().tolist(), strict=True):
                assert step == 0 or i == round(value / step) or abs(abs(value / step) % 1 - 0.5) < 1e-3
                assert back == pytest.approx(i * step, rel=1e-5) and abs(back - value) <= 0.5001 * step
    again = to_eight_bits(read, smallest=50)
    assert all(torch.equal(again[name], stored[name]) for name in ("conv", "matrix"))  # so that saving what was loaded changes nothing


def test_weights_in_eight_bits_are_read_like_others(tmp_path):
    module = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 2))
    save_weights(module, tmp_path / "eight.safetensors", eight_bits=True)
    kinds = {name: tensor.dtype for name, tensor in load_file(tmp_path / "eight.safetensors").items()}
    half = torch.float16
    assert kinds == {
        "0.weight": torch.int8, "0.weight" + ROW_SCALE: torch.float32, "0.bias": half, "1.weight": half, "1.bias": half,
    }  # fmt: skip
    other = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 2))
    load_weights(other, tmp_path / "eight.safetensors")
    with torch.no_grad():
        assert 0 < float((other[0].weight - module[0].weight).abs().max()) <= 0.51 / 127 * float(module[0].weight.abs().max())
    assert torch.equal(other[1].weight, module[1].weight.half().float())
    save_weights(other, tmp_path / "again.safetensors", eight_bits=True)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "eight.safetensors").read_bytes()
    with torch.no_grad():
        module[0].weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="0.weight.*finite"):
        save_weights(module, tmp_path / "eight.safetensors", eight_bits=True)
    stray = {"a" + ROW_SCALE: torch.ones(3), "a": torch.ones(3, 2)}
    save_file(stray, tmp_path / "stray.safetensors")
    with pytest.raises(CheckpointError, match="a.row_scale are not the scales"):
        read_tensors(tmp_path / "stray.safetensors")
