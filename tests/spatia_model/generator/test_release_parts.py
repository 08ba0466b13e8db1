"""Streamed decoding, the text encoder, mapped weights, and fitting: the parts of the full tier, tiny and random."""

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spatia_model.config import ReleaseConfig
from spatia_model.generator import fitting, umt5
from spatia_model.generator.checkpoint import CheckpointError
from spatia_model.generator.conversion.convert import convert
from spatia_model.generator.conversion.plan import plan
from spatia_model.generator.fitting import GIB, Fit, choose_fit, fit_transformer
from spatia_model.generator.mapped import mapped_tensors
from spatia_model.generator.release_pipeline import ReleaseGenerator, to_whole
from spatia_model.generator.transformer import SpatiaTransformer
from spatia_model.geometry.camera import camera_from_fov
from spatia_model.release_folder import load_text, load_transformer, load_vae
from spatia_model.types import Conditioning, Projection
from tests.spatia_model.generator.tiny_release import architecture, write_release

SEED = 2_000_700
CONFIG = ReleaseConfig(width=64, height=32, first_frames=9, window_frames=13, history_frames=5, steps=2, max_references=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("released")
    base, spatia, _ = write_release(place)
    convert(plan(base, spatia, architecture(), "float32", CONFIG, "embedded", shard=150_000), place / "model")
    return place / "model"


@pytest.fixture(scope="module")
def parts(folder):
    return load_vae(folder), load_transformer(folder), load_text(folder)


def noise(*shape, seed=SEED):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conditioning(lora=1.0, references=2):
    generator = torch.Generator().manual_seed(SEED + 1)

    def frames(count):
        return torch.randint(0, 256, (count, 32, 64, 3), generator=generator).to(torch.uint8)

    alpha = torch.randint(0, 256, (13, 32, 64), generator=generator).to(torch.uint8)
    projection = Projection(frames(13), torch.ones(13, 32, 64), alpha > 0, torch.zeros(13, 32, 64, dtype=torch.int32), alpha)
    poses = torch.eye(4, dtype=torch.float64).expand(13, 4, 4)
    return Conditioning(frames(5), torch.zeros(5, 32, 64), projection, frames(references), "a red ball", poses, lora)


def generate(parts, fit=None, given=None, transformer=None):
    vae, network, text = parts
    generator = ReleaseGenerator(vae, transformer or network, text, CONFIG, fit)
    return generator.generate_clip(given or conditioning(), torch.Generator().manual_seed(SEED))


# -- decoding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(1, 2, 3), (3, 3), (1, 1, 1, 1, 1, 1)])
def test_streamed_decoding_is_one_long_decode(parts, cuts, monkeypatch):
    """Bit for bit what diffusers' own decode gives, once its first, pointwise convolution rounds frame by frame, not over all at once."""
    vae = parts[0]
    latents = noise(1, 48, 6, 2, 4)
    whole = vae.decode(latents)
    assert whole.shape == (1, 3, 21, 32, 64)
    stream = vae.stream()
    assert torch.equal(torch.cat([stream.add(part) for part in latents.split(cuts, 2)], 2), whole)
    mean, std = vae._statistics(latents)
    pointwise = vae.network.post_quant_conv.forward
    with torch.no_grad():
        assert torch.allclose(vae.network.decode(latents * std + mean).sample, whole, atol=1e-5)
        monkeypatch.setattr(
            vae.network.post_quant_conv, "forward", lambda z: torch.cat([pointwise(frame) for frame in z.split(1, 2)], 2), raising=False
        )
        assert torch.equal(vae.network.decode(latents * std + mean).sample, whole)
    assert not torch.equal(vae.decode(latents[:, :, 3:]), whole[:, :, 12:])  # without its past a clip begins anew


@pytest.mark.parametrize(("offload", "moves"), [("none", ["cpu"] * 2), ("model", ["cpu"] * 4)])
def test_between_clips_a_video_s_past_waits_with_the_autoencoder(parts, offload, moves, monkeypatch):
    """Where there is only a CPU, it moves from there to there: with offload back again after every clip."""
    from types import SimpleNamespace

    from spatia_model.generator.wan_vae import VideoStream
    from spatia_model.release_world import ReleaseVideo

    made: list[str] = []
    move = VideoStream.to
    monkeypatch.setattr(VideoStream, "to", lambda self, device: made.append(str(device)) or move(self, device))
    video = ReleaseVideo(ReleaseGenerator(*parts, CONFIG, Fit(offload=offload)))
    latents = noise(48, 4, 2, 4)
    given = [SimpleNamespace(latents=part, frames=range(count)) for part, count in zip(latents.split(2, 1), (4, 8), strict=True)]
    shown = torch.cat([video.add(clip) for clip in given])  # type: ignore[arg-type]
    assert torch.equal(shown, to_whole(parts[0].decode(latents[None]))[0]) and made == moves
    assert any(isinstance(kept, torch.Tensor) for kept in video._stream._memory)


def test_two_streams_do_not_mix(parts):
    vae = parts[0]
    a, b = noise(1, 48, 2, 2, 2), noise(1, 48, 2, 2, 2, seed=SEED + 9)
    first, second = vae.stream(), vae.stream()
    mixed = [stream.add(x[:, :, i : i + 1]) for i in range(2) for stream, x in ((first, a), (second, b))]
    assert torch.equal(torch.cat(mixed[::2], 2), vae.decode(a)) and torch.equal(torch.cat(mixed[1::2], 2), vae.decode(b))
    with pytest.raises(ValueError, match="latents"):
        first.add(torch.zeros(1, 3, 1, 2, 2))


def test_whole_colours_are_cut_as_the_release_does():
    x = torch.tensor([-1.5, -1.0, 0.0, 0.999, 1.0]).view(1, 1, 5, 1, 1).expand(-1, 3, -1, -1, -1)
    assert to_whole(x)[0, :, 0, 0, 0].tolist() == [0, 0, 127, 254, 255]


# -- text -----------------------------------------------------------------------------------------------------------


def test_text_rows_are_the_networks_and_zero_beyond(parts, folder, monkeypatch):
    from transformers import AutoTokenizer, UMT5EncoderModel

    text = parts[2]
    rows = text.encode(["a red ball rolls", "", "a red ball rolls"])
    assert rows.shape == (3, 512, 16) and torch.equal(rows[0], rows[2])
    plain, tokenizer = UMT5EncoderModel.from_pretrained(folder / "text_encoder"), AutoTokenizer.from_pretrained(folder / "tokenizer")
    ids = tokenizer(["a red ball rolls"], return_tensors="pt").input_ids
    with torch.no_grad():
        alone = plain(input_ids=ids).last_hidden_state
    assert torch.allclose(rows[0, : ids.shape[1]], alone[0], atol=1e-5)
    assert rows[0, : ids.shape[1]].abs().min() > 0 and not rows[0, ids.shape[1] :].any() and not rows[1, 1:].any()
    monkeypatch.setattr(text, "network", None)
    assert torch.equal(text.encode(["a red ball rolls"])[0], rows[0])  # known: not computed again
    assert umt5.clean("  a  &amp;lt; b\n c ") == "a < b c" and text.unknown_words("xyzzy") == []
    rows = text.rows - 1  # one is the end of text
    assert text.too_long("red " * rows) == text.too_long(*["red " * (rows // 2)] * 2) == ""
    assert text.too_long("red " * rows, "ball").startswith(f"{text.rows + 1} tokens (pieces of words), of which")


def test_the_text_encoder_visits_the_device(parts, folder, monkeypatch):
    text = load_text(folder, fit=Fit(offload="model"))
    places = [p.data_ptr() for p in text.network.parameters()]
    moves = []
    move = type(text.network).to
    monkeypatch.setattr(type(text.network), "to", lambda self, device: moves.append(str(device)) or move(self, device))
    rows = text.encode(["a ball", "a cow"])
    text.encode(["a cow"])
    assert moves == ["cpu"]  # once; its own weights stay, so there is no way back
    assert [p.data_ptr() for p in text.network.parameters()] == places
    assert torch.equal(rows, parts[2].encode(["a ball", "a cow"]))


def test_the_text_encoder_block_by_block_gives_the_same(parts, folder):
    texts = ["a ball", "a red cow rolls to the left", ""]
    assert torch.equal(load_text(folder, fit=Fit(offload="group")).encode(texts), parts[2].encode(texts))


# -- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux' list of mapped files")
def test_weights_are_the_files_themselves(folder):
    """The parameters lie in the mapped files: nothing was copied, so each byte is read once, when it is used."""

    def read() -> int:
        return int(next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar")).split()[1])

    for load in (load_transformer, load_vae):
        load(folder)  # modules and configs are read now
    before = read()
    transformer, vae = load_transformer(folder), load_vae(folder)
    weights = sum(path.stat().st_size for part in ("transformer", "vae") for path in (folder / part).glob("*.safetensors"))
    assert read() - before < weights / 2  # headers, configs and the adapters
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(folder) in line:
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            mapped.append(range(start, end))
    tensors = [p for n, p in transformer.named_parameters() if ".lora_" not in n] + list(vae.parameters())
    assert len(tensors) > 300
    assert all(any(p.data_ptr() in place for place in mapped) for p in tensors)


def test_mapped_tensors_are_those_of_the_file_wherever_they_lie(tmp_path):
    from safetensors.torch import load_file, save_file

    from spatia_model.generator.conversion.spans import read_spans, write_spans
    from spatia_model.generator.mapped import mapped_file

    source = {"a": noise(3, 5).bfloat16(), "b": noise(7), "c": noise(1).half(), "d": torch.zeros(0, 2), "e": noise(2, 3)}
    save_file(source, tmp_path / "x.safetensors")
    spans = read_spans(tmp_path / "x.safetensors")
    write_spans(tmp_path / "y.safetensors", [(name, spans[name], spans[name].dtype) for name in source])  # "b" begins at an odd place
    assert any(span.offset % span.dtype.itemsize for span in read_spans(tmp_path / "y.safetensors").values())
    for file in ("x", "y"):
        found = mapped_file(tmp_path / f"{file}.safetensors")
        assert found.keys() == source.keys() == load_file(tmp_path / f"{file}.safetensors").keys()
        assert all(torch.equal(found[name], source[name]) and found[name].dtype == source[name].dtype for name in source)


def test_a_missing_shard_or_tensor_is_named(folder, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    place = tmp_path / "model"
    shutil.copytree(folder, place)
    shards = sorted((place / "transformer").glob("*.safetensors"))
    tensors = load_file(shards[-1])
    tensors.pop("proj_out.bias")
    save_file(tensors, shards[-1])
    with pytest.raises(CheckpointError, match=r"transformer.*missing: proj_out\.bias"):
        load_transformer(place)
    shards[0].unlink()
    with pytest.raises(CheckpointError, match=shards[0].name):
        mapped_tensors(place / "transformer", "diffusion_pytorch_model")


# -- fitting --------------------------------------------------------------------------------------------------------


def test_lora_and_references_reach_the_clip(parts):
    made = generate(parts)
    assert made.frames.shape == (8, 32, 64, 3) and made.latents.shape == (48, 4, 2, 4) and made.known == 2
    for other in (conditioning(lora=0.0), conditioning(references=1)):
        assert not torch.equal(generate(parts, given=other).latents, made.latents)
    before = {name: p.clone() for name, p in parts[1].named_parameters()}
    generate(parts, given=conditioning(lora=0.0))
    assert all(torch.equal(p, before[name]) for name, p in parts[1].named_parameters())  # never edited
    with pytest.raises(ValueError, match="1 \\+ 4k"):
        given = conditioning()
        generate(
            parts,
            given=Conditioning(
                given.history[:4], *(getattr(given, n) for n in ("history_dynamic", "projection", "references")), "", given.T_world_camera
            ),
        )


def test_every_way_to_fit_gives_the_same_clip(parts, folder):
    plain = generate(parts).latents
    assert torch.allclose(generate(parts, Fit(batched_guidance=True)).latents, plain, atol=1e-4)
    assert torch.equal(generate(parts, Fit(offload="model")).latents, plain)
    moved = load_transformer(folder)
    fit_transformer(moved, "cpu", Fit(offload="group", attention="native"))
    assert torch.allclose(generate(parts, Fit(offload="group"), transformer=moved).latents, plain, atol=1e-4)


def test_compiled_blocks_give_the_same_clip(parts, folder, monkeypatch):
    """Captured as on a GPU, run without its compiler, which these tests do not need; both LoRA shares, with and without references."""
    from torch._dynamo.utils import counters

    network = load_transformer(folder)
    compiled = type(network).compile_repeated_blocks
    monkeypatch.setattr(type(network), "compile_repeated_blocks", lambda self, **given: compiled(self, **given, backend="eager"))
    counters.clear()
    fit_transformer(network, "cpu", Fit(compile=True))
    for given in (conditioning(lora=0.0, references=0), conditioning()):
        made = generate(parts, Fit(compile=True), given, network).latents
        assert torch.allclose(made, generate(parts, given=given).latents, atol=1e-4)
    assert counters["stats"]["unique_graphs"] > 0 and not counters["graph_break"], counters["graph_break"]


def test_with_offload_one_network_at_a_time_is_on_the_device(parts, folder, monkeypatch):
    """Text, autoencoder, denoiser, autoencoder: none is there while another is. With "group" blocks come by their own hooks."""
    from contextlib import contextmanager

    vae, transformer, _ = parts
    order: list[str] = []
    there: list[str] = []

    @contextmanager
    def watched(module, device, fit):
        assert not there, there
        there.extend([type(module).__name__] if fit.offload != "none" else [])
        order.extend(there)
        yield
        there.clear()

    for name in ("umt5", "release_pipeline"):
        monkeypatch.setattr(f"spatia_model.generator.{name}.visiting", watched)
    plain = generate(parts).latents
    for kind, expected in (
        ("model", ["UMT5EncoderModel", "WanVAE", "SpatiaTransformer", "WanVAE"]),
        ("group", ["WanVAE", "WanVAE"]),
    ):
        order.clear()
        text = load_text(folder, fit=Fit(offload=kind))
        made = generate((vae, transformer, text), Fit(offload=kind))
        assert order == expected and torch.allclose(made.latents, plain, atol=1e-4)


@pytest.mark.parametrize("keeps_identity", [True, False])
def test_a_visit_leaves_the_weights_where_they_were(keeps_identity, monkeypatch):
    """A move to a GPU gives the same parameters other data; one to the meta device makes other parameters. Both are undone."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).requires_grad_(False).eval()
    module.tied = module[0]

    def tensors():
        return [*module.parameters(), *module.buffers()]

    before = [(id(p), p.data_ptr()) for p in tensors()]
    given = torch.ones(2, 3)
    wanted = module[1](module[0](given))
    if keeps_identity:
        monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self._apply(torch.clone))
    with torch.inference_mode(), pytest.raises(KeyError), fitting.visiting(module, "meta", Fit(offload="model")):
        assert not {p.data_ptr() for p in tensors()} & {place for _, place in before}
        assert ([id(p) for p in module.parameters()] == [key for key, _ in before[:4]]) == keeps_identity
        raise KeyError
    assert [(id(p), p.data_ptr()) for p in tensors()] == before and torch.equal(module[1](module[0](given)), wanted)
    with fitting.visiting(module, "meta", Fit()):
        assert [(id(p), p.data_ptr()) for p in tensors()] == before


def test_float8_halves_the_linear_weights_and_keeps_the_rest(folder, parts):
    given = conditioning()
    stored = load_transformer(folder).to(torch.bfloat16)
    wide = generate(parts, given=given, transformer=stored).latents
    fit_transformer(stored, "cpu", Fit(quantise="float8"))
    kinds = {name: p.dtype for name, p in stored.named_parameters()}
    assert kinds["blocks.0.ffn.net.2.base_layer.weight"] == kinds["vace_blocks.1.attn2.to_k.weight"] == torch.float8_e4m3fn
    for name in ("patch_embedding.weight", "condition_embedder.time_proj.weight", "blocks.0.attn1.norm_q.weight", "proj_out.weight"):
        assert kinds[name] == torch.bfloat16, name
    assert all(kind == torch.bfloat16 for name, kind in kinds.items() if ".lora_" in name)
    narrow = generate(parts, given=given, transformer=stored).latents
    new = slice(2, None)  # the history comes back as given
    assert torch.isfinite(narrow).all() and not torch.equal(narrow, wide)
    error = (narrow - wide)[:, new].norm() / wide[:, new].norm()
    assert error < 0.3, float(error)


def test_perceivers_wait_where_the_5b_leaves_no_room(monkeypatch):
    from types import SimpleNamespace

    from spatia_model import release_folder
    from spatia_model.perception import registry

    memory = 80 * GIB
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=memory))
    assert not fitting.perceivers_wait("cpu", Fit(offload="model")) and not fitting.perceivers_wait("cuda", Fit())
    assert fitting.perceivers_wait("cuda", Fit(offload="model"))
    memory = 40 * GIB
    assert fitting.perceivers_wait("cuda", Fit())
    built = []
    monkeypatch.setattr(registry, "build_perceiver", lambda config, device: built.append((config.every, config.offload, device)))
    for wanted, wait in (("today", True), ("today", False), ({"preset": "paper", "offload": True}, False)):
        release_folder.LazyPerceiver(wanted, "cuda", wait).load()
    assert built == [(1, True, "cuda"), (1, False, "cuda"), (1, True, "cuda")]


def test_torchaos_int8_gives_nearly_the_same_clip(folder, parts):
    pytest.importorskip("torchao", reason="torchao is not installed")
    stored = load_transformer(folder)
    fit_transformer(stored, "cpu", Fit(offload="model", quantise="int8"))
    assert type(stored.blocks[0].ffn.net[2].base_layer.weight).__module__.startswith("torchao")
    plain = {name for name, p in stored.named_parameters() if type(p.data) is torch.Tensor}
    assert any(".lora_" in name for name in plain) and {"proj_out.weight", "patch_embedding.weight"} <= plain
    narrow, wide = generate(parts, Fit(offload="model"), transformer=stored).latents, generate(parts).latents
    error = (narrow - wide)[:, 2:].norm() / wide[:, 2:].norm()
    assert 0 < error < 0.1, float(error)


def test_settings_are_chosen_by_memory_and_bad_ones_refused(monkeypatch):
    chosen = [choose_fit(size * GIB) for size in (80, 24, 16, 8)]
    assert [(fit.offload, fit.quantise) for fit in chosen] == [("none", None), ("model", None), ("model", "float8"), ("group", None)]
    for arguments, message in [
        ({"offload": "disk"}, "offload"),
        ({"quantise": "int2"}, "quantise"),
        ({"offload": "group", "quantise": "int4"}, "float8"),
    ]:
        with pytest.raises(ValueError, match=message):
            Fit(**arguments)
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(ModuleNotFoundError, match="pip install torchao"):
        fitting.quantised_config("int8")


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.count = max(self.count, tensor.untyped_storage().nbytes() // tensor.element_size())
        return made


def test_modulation_is_per_distinct_time_not_per_token():
    """At full size a modulation per token would be tokens x 6 x dim floats, 2 GB; nothing here is larger than the feed-forward's hidden."""
    dim, ffn, frames, side = 96, 200, 5, 8
    network = SpatiaTransformer(
        num_attention_heads=4,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=ffn,
        num_layers=2,
        vace_layers=(0,),
        vace_in_channels=8,
    )
    tokens = frames * side * side
    latents, times = noise(1, 4, frames, 2 * side, 2 * side), torch.tensor([[0.0, 0, 500, 500, 500]])
    watch = Largest()
    with torch.no_grad(), watch:
        network(latents, times, noise(1, 8, 16), noise(1, 8, frames, 2 * side, 2 * side))
    assert watch.count == tokens * ffn < tokens * 6 * dim


def test_camera_of_the_config():
    from spatia_model.config import release_camera

    assert release_camera(CONFIG).width == 64
    assert camera_from_fov(CONFIG.fov_x, 64, 32).K.allclose(release_camera(CONFIG).K)
