"""The benchmark of converting and opening, on a small checkpoint: its sparse sources are the real layout, and a wrong byte is noticed."""

from __future__ import annotations

import pytest
import torch

from spatia_model.generator.conversion.architecture import Architecture
from spatia_model.generator.conversion.convert import check_folder, convert
from spatia_model.generator.conversion.plan import plan
from tests.agents.loading import load


def test_sparse_sources_are_converted_compared_and_refused(tmp_path, monkeypatch):
    bench = load("release_conversion", "benchmarks")
    default = Architecture()
    made = Architecture(*({**getattr(default, part), **bench.SMALL[part]} for part in ("transformer", "vae", "text")))
    for module in (bench, __import__("spatia_model.generator.conversion.spans", fromlist=["PIECE"])):
        monkeypatch.setattr(module, "PIECE", 1500)  # so that tensors are cut
    written = bench.write_sources(tmp_path, made)
    assert written["files"] == 9 and len(list((tmp_path / "base").glob("*.safetensors"))) == 3
    original = torch.load(tmp_path / "base" / "Wan2.2_VAE.pth", weights_only=True)
    name, values = next((name, tensor.flatten()) for name, tensor in original.items() if tensor.numel() > 1024)
    assert torch.equal(values[:512], bench.pattern(name, 0, 512)) and torch.equal(
        values[-512:], bench.pattern(name, len(values) - 512, 512)
    )

    said = bench.strict(tmp_path, made)
    assert set(said) == {"missing", "extra", "misshapen", "no shard"} and "vace_blocks.1.modulation" in said["misshapen"]
    planned = plan(tmp_path / "base", tmp_path / "spatia", made)
    convert(planned, tmp_path / "model")
    check_folder(tmp_path / "model")
    assert bench.compare(planned, tmp_path / "model")["tensors"] == len(made._denoiser) + len(made.lora(64)) + 196 + len(made.text_file())
    shard = sorted((tmp_path / "model" / "vae").glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 0x40
    shard.write_bytes(bytes(data))
    with pytest.raises(SystemExit, match=shard.name):
        bench.compare(planned, tmp_path / "model")
