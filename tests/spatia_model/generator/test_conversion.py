import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatia_model.config import PAPER, RELEASE
from spatia_model.generator.checkpoint import CheckpointError
from spatia_model.generator.conversion import convert as conversion
from spatia_model.generator.conversion import sources
from spatia_model.generator.conversion.architecture import PINNED, Architecture, digest
from spatia_model.generator.conversion.convert import check_folder, convert, describe
from spatia_model.generator.conversion.export import export_control, export_release, released_adapter
from spatia_model.generator.conversion.part_names import text_to_official, text_to_transformers, vae_to_diffusers, vae_to_official
from spatia_model.generator.conversion.plan import plan
from spatia_model.generator.conversion.spans import read_span, read_spans, write_spans
from spatia_model.generator.lora import load_lora, save_lora
from spatia_model.generator.names import to_official
from spatia_model.generator.transformer import SpatiaTransformer
from tests.spatia_model.generator.tiny_release import RANK, SIZES, architecture, write_release

MANIFESTS = Path(__file__).parents[3] / "../shared/parity"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def planned(released):
    base, spatia, _ = released
    return plan(base, spatia, architecture(), "float32", shard=200_000)


@pytest.fixture(scope="module")
def converted(planned, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "model"
    convert(planned, out)
    return out


# -- what a checkpoint must hold ------------------------------------------------------------------------------------


def test_the_released_lists_are_pinned():
    made = Architecture()
    for part, (count, parameters, expected) in PINNED.items():
        shapes = getattr(made, part)()
        assert (len(shapes), sum(map(math.prod, shapes.values())), digest(shapes)) == (count, parameters, expected)
    assert len(made.vae_file()) == 196 and len(made.text_file()) == 242
    assert sum(map(math.prod, made.text_file().values())) == 5_680_910_336  # the encoder half of umt5-xxl
    changed = dict(made.base()) | {"blocks.0.modulation": (1, 6, 3073)}
    assert digest(changed) != PINNED["base"][2]


@pytest.mark.skipif(not MANIFESTS.is_dir(), reason="the manifests of the released checkpoints aren't here")
def test_the_generated_lists_are_the_manifests():
    def manifest(name):
        return {key: tuple(shape) for key, shape in json.loads((MANIFESTS / f"manifest_{name}.json").read_text()).items()}

    assert Architecture().base() == manifest("base_dit")
    assert Architecture().control() == manifest("control")
    expected = json.loads((MANIFESTS / "manifest_lora_expected.json").read_text())["keys"]
    assert Architecture().lora(64) == {key: tuple(64 if n == "r" else n for n in shape) for key, shape in expected.items()}


def test_names_of_vae_and_text_encoder_go_both_ways():
    # As published converters and loaders of Wan2.2's files pair them.
    pairs = {
        "encoder.downsamples.1.downsamples.2.time_conv.bias": "encoder.down_blocks.1.downsampler.time_conv.bias",
        "encoder.downsamples.0.downsamples.2.resample.1.weight": "encoder.down_blocks.0.downsampler.resample.1.weight",
        "encoder.downsamples.1.downsamples.0.shortcut.weight": "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
        "decoder.upsamples.0.upsamples.3.time_conv.weight": "decoder.up_blocks.0.upsampler.time_conv.weight",
        "decoder.upsamples.1.upsamples.2.residual.6.bias": "decoder.up_blocks.1.resnets.2.conv2.bias",
        "decoder.upsamples.1.upsamples.2.residual.3.gamma": "decoder.up_blocks.1.resnets.2.norm2.gamma",
        "encoder.middle.2.residual.6.weight": "encoder.mid_block.resnets.1.conv2.weight",
        "decoder.middle.1.to_qkv.bias": "decoder.mid_block.attentions.0.to_qkv.bias",
        "decoder.head.2.weight": "decoder.conv_out.weight",
        "conv1.weight": "quant_conv.weight",
        "conv2.bias": "post_quant_conv.bias",
    }
    assert {name: vae_to_diffusers(name) for name in pairs} == pairs
    made = Architecture()
    ours = list(made.vae_model.state_dict())
    assert [vae_to_diffusers(vae_to_official(name)) for name in ours] == ours
    text = [name for name in made.text_model.state_dict() if name != "encoder.embed_tokens.weight"]
    assert [text_to_transformers(text_to_official(name)) for name in text] == text
    assert text_to_transformers("blocks.3.ffn.gate.0.weight") == "encoder.block.3.layer.1.DenseReluDense.wi_0.weight"
    for rename in (vae_to_diffusers, vae_to_official, text_to_transformers, text_to_official):
        with pytest.raises(ValueError, match="decoder.nothing.weight"):
            rename("decoder.nothing.weight")


# -- files ----------------------------------------------------------------------------------------------------------


def test_spans_are_the_tensors(tmp_path, monkeypatch):
    tensors = {"a": torch.randn(3, 5).bfloat16(), "b": torch.randn(7), "c": torch.tensor(2.0)}
    shared = torch.randn(4, 3)
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save({"state_dict": tensors | {"d": shared[1:3]}}, tmp_path / "x.pth")
    for file, wanted in (("x.safetensors", tensors), ("x.pth", tensors | {"d": shared[1:3]})):
        found = {name: read_span(span) for name, span in read_spans(tmp_path / file).items()}
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) and found[name].dtype == wanted[name].dtype for name in wanted)
    monkeypatch.setattr("spatia_model.generator.conversion.spans.PIECE", 4)  # several pieces per tensor
    spans = read_spans(tmp_path / "x.pth")
    done: list[int] = []
    size, checksum = write_spans(tmp_path / "y.safetensors", [(n, spans[n], torch.float32) for n in "abd"], done.append)
    copy = load_file(tmp_path / "y.safetensors")
    assert size == sum(done) == (tmp_path / "y.safetensors").stat().st_size and len(checksum) == 64
    assert all(torch.equal(copy[name], value.float()) for name, value in {"a": tensors["a"], "b": tensors["b"], "d": shared[1:3]}.items())


def test_damaged_sources_are_named(tmp_path):
    save_file({"a": torch.ones(300)}, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:-9])
    with pytest.raises(CheckpointError, match=r"x\.safetensors: tensor a lies outside"):
        read_spans(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors: not a whole"):
        read_spans(tmp_path / "x.safetensors")
    (tmp_path / "x.pth").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"x\.pth: not a whole PyTorch zip"):
        read_spans(tmp_path / "x.pth")
    torch.save({"a": Architecture}, tmp_path / "x.pth")  # would need to run code
    with pytest.raises(CheckpointError, match=r"x\.pth: can't be loaded as weights only"):
        read_spans(tmp_path / "x.pth")
    torch.save({"a": torch.ones(4, 3).T}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="tensor a"):
        read_spans(tmp_path / "x.pth")
    for bad, kind in ((math.nan, torch.float32), (math.inf, torch.float32), (-math.inf, torch.bfloat16), (math.nan, torch.float16)):
        save_file({"a": torch.tensor([1.0, bad, 2.0], dtype=kind)}, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match=r"x\.safetensors: tensor a holds NaN"):
            write_spans(tmp_path / "y.safetensors", [("a", read_spans(tmp_path / "x.safetensors")["a"], torch.float32)])
    save_file({"a": torch.tensor([1.0, 1e5])}, tmp_path / "x.safetensors")
    spans = read_spans(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors: tensor a holds values beyond float16"):
        write_spans(tmp_path / "y.safetensors", [("a", spans["a"], torch.float16)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth", "x.safetensors"]


# -- conversion -----------------------------------------------------------------------------------------------------


def test_every_value_arrives_and_plain_classes_open_the_folder(released, converted):
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
    from peft import PeftModel
    from transformers import AutoTokenizer, UMT5EncoderModel

    base, spatia, _ = released
    assert len(list((converted / "transformer").glob("*.safetensors"))) > 1  # it was sharded
    source = {}
    for file in [*base.glob("diffusion*.safetensors"), spatia / "step-8500.safetensors"]:
        source |= load_file(file)
    opened: Any = WanVACETransformer3DModel.from_pretrained(converted / "transformer", output_loading_info=True)
    stock, info = opened
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ours = SpatiaTransformer.from_pretrained(converted / "transformer")
    for model in (stock, ours):
        found = {to_official(name): tensor for name, tensor in model.state_dict().items()}
        assert found.keys() == source.keys()
        assert all(torch.equal(found[name], source[name]) for name in source)
    vae = AutoencoderKLWan.from_pretrained(converted / "vae").state_dict()
    original = torch.load(base / "Wan2.2_VAE.pth", weights_only=True)
    assert len(original) == len(vae) and all(torch.equal(vae[vae_to_diffusers(name)], value) for name, value in original.items())
    opened = UMT5EncoderModel.from_pretrained(converted / "text_encoder", output_loading_info=True)
    text, info = opened
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    original = torch.load(base / "models_t5_umt5-xxl-enc-bf16.pth", weights_only=True)
    state = text.state_dict()
    assert all(torch.equal(state[text_to_transformers(name)], value) for name, value in original.items())
    assert torch.equal(state["encoder.embed_tokens.weight"], original["token_embedding.weight"])
    assert AutoTokenizer.from_pretrained(converted / "tokenizer")(["red ball"]).input_ids == [[9, 10, 1]]
    assert UniPCMultistepScheduler.from_pretrained(converted / "scheduler").config.flow_shift == 5
    adapted = PeftModel.from_pretrained(ours, str(converted / "lora"))
    lora = load_file(spatia / "lora_weights_10000.safetensors")
    loaded = {name: tensor for name, tensor in adapted.state_dict().items() if ".lora_" in name}
    assert len(loaded) == len(lora)
    first = "blocks.0.attn1.to_q.lora_B.default.weight"
    assert torch.equal(loaded[f"base_model.model.{first}"], lora["pipe.dit.blocks.0.self_attn.q.lora_B.default.weight"])
    assert adapted.peft_config["default"].r == adapted.peft_config["default"].lora_alpha == RANK


def test_the_diffusers_folder_of_the_base_gives_the_same(released, converted, tmp_path):
    """A base in diffusers' layout: what was converted, without control blocks."""
    _, spatia, _ = released
    base = tmp_path / "base"
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(converted / part, base / part)
    (base / "transformer").mkdir()
    state = {}
    for file in (converted / "transformer").glob("*.safetensors"):
        state |= {name: tensor for name, tensor in load_file(file).items() if not name.startswith("vace_")}
    save_file(state, base / "transformer" / "diffusion_pytorch_model.safetensors")
    config = json.loads((converted / "transformer" / "config.json").read_text())
    (base / "transformer" / "config.json").write_text(json.dumps({k: v for k, v in config.items() if not k.startswith("vace_")}))
    described = convert(plan(base, spatia, architecture(), "float32", shard=200_000), tmp_path / "out")
    assert {name: note["sha256"] for name, note in described["files"].items() if name.endswith(".safetensors")} == {
        name: note["sha256"] for name, note in describe(converted)["files"].items() if name.endswith(".safetensors")
    }
    (base / "transformer" / "config.json").write_text(json.dumps(config | {"num_layers": 31}))
    with pytest.raises(CheckpointError, match="num_layers is 31, expected 6"):
        plan(base, spatia, architecture())


def test_half_precision_keeps_norms_and_modulation_exact(released, tmp_path):
    base, spatia, _ = released
    convert(plan(base, spatia, architecture()), tmp_path / "out")
    exact = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    model = SpatiaTransformer.from_pretrained(tmp_path / "out" / "transformer", torch_dtype=torch.bfloat16)
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == {name: tensor.dtype for name, tensor in exact.items()}
    assert exact["blocks.0.scale_shift_table"].dtype == torch.float32
    assert exact["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    source = load_file(base / "diffusion_pytorch_model-00001-of-00003.safetensors")
    assert torch.equal(exact["blocks.0.scale_shift_table"], source["blocks.0.modulation"])
    assert torch.equal(exact["blocks.0.attn1.to_q.weight"], source["blocks.0.self_attn.q.weight"].bfloat16())


def test_a_missing_extra_or_misshapen_tensor_is_named(released, tmp_path):
    base, spatia, _ = released
    with pytest.raises(CheckpointError, match=r"dim is 24, expected 3072.*--architecture"):
        plan(base, spatia)

    def altered(file, change):
        place = tmp_path / "altered"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(base.parent, place)
        target = place / file
        pth = target.suffix == ".pth"
        tensors = torch.load(target, weights_only=True) if pth else load_file(target)
        change(tensors)
        torch.save(tensors, target) if pth else save_file(tensors, target)
        return plan(place / "base", place / "spatia", architecture())

    third = "base/diffusion_pytorch_model-00003-of-00003.safetensors"
    with pytest.raises(CheckpointError, match=r"denoiser.*missing: head\.head\.bias"):
        altered(third, lambda t: t.pop("head.head.bias"))
    with pytest.raises(CheckpointError, match=r"denoiser.*extra: img_emb\.weight"):
        altered(third, lambda t: t.update({"img_emb.weight": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"step-8500.*vace_blocks\.1\.modulation is \(1, 5, 24\)"):
        altered("spatia/step-8500.safetensors", lambda t: t.update({"vace_blocks.1.modulation": torch.ones(1, 5, 24)}))
    with pytest.raises(CheckpointError, match=r"VAE.*missing: decoder\.head\.2\.bias"):
        altered("base/Wan2.2_VAE.pth", lambda t: t.pop("decoder.head.2.bias"))
    with pytest.raises(CheckpointError, match=r"text encoder.*extra: blocks\.0\.cross\.weight"):
        altered("base/models_t5_umt5-xxl-enc-bf16.pth", lambda t: t.update({"blocks.0.cross.weight": torch.ones(2)}))
    name = "pipe.dit.blocks.1.ffn.0.lora_A.default.weight"
    with pytest.raises(CheckpointError, match=r"lora_weights_10000.*blocks\.1\.ffn\.0.*lora_A is missing"):
        altered("spatia/lora_weights_10000.safetensors", lambda t: t.pop(name))
    with pytest.raises(CheckpointError, match=r"lora_weights_10000.*blocks\.1\.ffn\.0 has A \(3, 9\)"):
        altered("spatia/lora_weights_10000.safetensors", lambda t: t.update({name: torch.ones(3, 9)}))
    (tmp_path / "altered" / "base" / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="diffusion_pytorch_model-00002-of-00003.safetensors: no such file"):
        plan(tmp_path / "altered" / "base", spatia, architecture())
    with pytest.raises(CheckpointError, match=r"step-8500.*the folder's safetensors files are: none"):
        plan(base, tmp_path, architecture())
    with pytest.raises(ValueError, match="nowhere.*folder"):
        plan(tmp_path / "nowhere", spatia, architecture())


def test_an_interrupted_conversion_goes_on_where_it_stopped(released, planned, converted, tmp_path):
    base, spatia, _ = released
    out = tmp_path / "out"
    seen: list[str] = []

    def stop(done, total, name):
        assert 0 < done <= total == planned.size
        seen.append(name)
        if len(set(seen)) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(planned, out, stop)
    assert not list(out.rglob("*.part"))
    with pytest.raises(CheckpointError, match="goes on where it stopped"):
        describe(out)
    finished = {name: (out / name).stat().st_mtime_ns for name in list(dict.fromkeys(seen))[:2]}
    (out / list(finished)[0]).touch()  # only the size of what was written is looked at
    finished = {name: (out / name).stat().st_mtime_ns for name in finished}
    (out / f"{seen[-1]}.part").write_bytes(b"half")  # a run that was killed could not tidy up
    again: list[str] = []
    described = convert(planned, out, lambda done, total, name: again.append(name))
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert not set(again) & set(finished) and seen[-1] in again
    assert described == describe(converted)
    assert check_folder(out) == described and not list(out.rglob("*.part"))

    once: list[str] = []
    convert(planned, out, lambda done, total, name: once.append(name))
    assert not once  # all is there
    changed = load_file(spatia / "step-8500.safetensors")
    place = tmp_path / "spatia"
    shutil.copytree(spatia, place)
    changed["vace_blocks.0.modulation"] = changed["vace_blocks.0.modulation"] + 1
    save_file(changed, place / "step-8500.safetensors")
    convert(plan(base, place, architecture(), "float32", shard=200_000), out, lambda done, total, name: once.append(name))
    assert {name.partition("/")[0] for name in once} == {"transformer", "lora"}  # made of other files now


def test_a_conversion_killed_in_its_first_file_goes_on_too(planned, tmp_path):
    out = tmp_path / "out"

    def stop(done, total, name):
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            convert(planned, out, stop)
        assert not [path for path in out.rglob("*.safetensors")]
    convert(planned, out)
    check_folder(out)


def test_disk_space_and_foreign_folders_are_checked_first(planned, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="no converted model"):
        convert(planned, tmp_path / "mine")
    usage = shutil.disk_usage(tmp_path)._replace(free=planned.size - 1)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="make room"):
        convert(planned, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_folder_is_noticed(converted, tmp_path):
    place = tmp_path / "model"
    shutil.copytree(converted, place)
    check_folder(place)
    path = place / "vae" / "diffusion_pytorch_model.safetensors"
    path = path if path.exists() else sorted((place / "vae").glob("*.safetensors"))[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=path.name):
        check_folder(place)
    path.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        check_folder(place)
    (place / "spatia.json").write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="spatia.json"):
        describe(place)


def test_export_gives_the_released_files_back(released, converted, tmp_path):
    _, spatia, _ = released
    written = export_release(converted, tmp_path / "back")
    assert [path.name for path in written] == ["step-8500.safetensors", "lora_weights_10000.safetensors"]
    for path in written:
        original, back = load_file(spatia / path.name), load_file(path)
        assert original.keys() == back.keys()
        assert all(torch.equal(original[name], back[name]) for name in original)
    model = SpatiaTransformer.from_pretrained(converted / "transformer")
    load_lora(model, released_adapter(converted))
    control = load_file(export_control(model, tmp_path / "control.safetensors"))
    original = load_file(spatia / "step-8500.safetensors")
    assert control.keys() == original.keys() and all(torch.equal(control[name], original[name]) for name in control)
    save_lora(model, tmp_path / "lora.safetensors")
    original = load_file(spatia / "lora_weights_10000.safetensors")
    assert all(torch.equal(tensor, original[name]) for name, tensor in load_file(tmp_path / "lora.safetensors").items())


def test_hub_ids_are_fetched_and_failures_named(released, monkeypatch):
    base, spatia, _ = released
    asked = []

    def snapshot(name, allow_patterns):
        asked.append((name, allow_patterns))
        if name == "no/network":
            raise OSError("unreachable")
        return str(base if name.startswith("Wan-AI") else spatia)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    planned = plan("Wan-AI/Wan2.2-TI2V-5B", "Jinjing713/Spatia", architecture())
    assert planned.outputs and [name for name, _ in asked] == ["Wan-AI/Wan2.2-TI2V-5B", "Jinjing713/Spatia"]
    assert asked[1][1] == [sources.CONTROL_FILE, sources.LORA_FILE]
    with pytest.raises(ValueError, match="no/network.*unreachable"):
        plan("no/network", "Jinjing713/Spatia")
    with pytest.raises(ValueError, match="give a folder"):
        plan("nonsense", spatia)


def test_the_description_holds_the_loop(released, tmp_path):
    base, spatia, file = released
    described = convert(plan(base, spatia, Architecture.read(file), world=PAPER, perception={"geometry": "compact"}), tmp_path / "out")
    assert type(RELEASE)(**describe(tmp_path / "out")["world"]) == PAPER == type(RELEASE)(**described["world"])
    assert described["perception"] == {"geometry": "compact"}
    assert dataclasses.replace(PAPER) != RELEASE
    assert Architecture.read(file).transformer["num_layers"] == SIZES["transformer"]["num_layers"]
    (tmp_path / "odd.json").write_text('{"denoiser": {}}')
    with pytest.raises(ValueError, match="odd.json"):
        Architecture.read(tmp_path / "odd.json")
