import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatia_model.evaluation.parity import add_arguments, check_file, run, run_parity
from tests.spatia_model.generator import reference_transformer as reference
from tests.spatia_model.generator.test_transformer import SEED, TINY

GOLDEN = Path(__file__).parents[3] / "../shared/parity"
CASES = ("a_first_round", "b_later_round", "c_no_control", "d_later_round_no_refs", "lora", "loop_first", "loop_later", "sampler")


@pytest.mark.parametrize("case", CASES)
def test_golden_fixtures_of_the_released_modules(case):
    if not GOLDEN.is_dir():
        pytest.skip("the golden fixtures aren't here")
    result = check_file(GOLDEN / f"public_{case}.safetensors")
    assert result.passed, (result.message, result.errors)
    assert result.tolerance == (2e-5 if case.startswith(("loop", "sampler")) else 1e-5)
    assert {"a": {"output", "hint.0", "hint.1", "rope_positions"}, "s": {"states", "timesteps", "sigmas"}}.get(case[0], set()) <= set(
        result.errors
    )


def own_fixture(path, references=2, control=True, one_time=False, lora=False, **changes):
    """A fixture of the golden form, from the plain reference in this folder."""
    config = {**TINY, "vace_layers": [1], **changes}
    weights = reference.random_weights(config, SEED, control)
    generator = torch.Generator().manual_seed(SEED)
    frames = references + 3
    latents = torch.randn(1, config["in_dim"], frames, 4, 4, generator=generator)
    given = torch.randn(1, config["vace_in_dim"], 3, 4, 4, generator=generator)
    context = torch.randn(1, 4, config["text_dim"], generator=generator)
    times = torch.full((frames,), 512.0)
    times[: 1 if one_time else references + 1] = 0
    arguments = (latents[0], times, context[0], given[0] if control else None, references, 0.5)
    tensors = {
        **weights,
        "input.latents": latents,
        "input.timestep": times[1:2] if one_time else times,
        "input.context": context,
        "input.num_ref_frames": torch.tensor([references]),
        "input.vace_scale": torch.tensor([0.5]),
        "debug.rope_positions": torch.tensor(reference.positions(frames, references, 2, 2), dtype=torch.int32),
        "expected.output": reference.forward(weights, config, *arguments)[None].float(),
    }
    if control:
        tensors["input.vace_context"] = given
    if lora:
        a, b = torch.randn(2, config["dim"], generator=generator), torch.randn(config["dim"], 2, generator=generator) * 0.1
        name = "blocks.1.self_attn.q"
        merged = {**weights, f"{name}.weight": weights[f"{name}.weight"] + b @ a}
        tensors |= {f"pipe.dit.{name}.lora_A.weight": a, f"pipe.dit.{name}.lora_B.weight": b}
        tensors |= {f"{name}.lora_A.weight": a * 9, "unrelated.weight": b * 9}  # to be ignored
        tensors["expected.output_without_lora"] = tensors["expected.output"]
        tensors["expected.output"] = reference.forward(merged, config, *arguments)[None].float()
        tensors[f"expected.merged.{name}.weight"] = merged[f"{name}.weight"].clone()
    save_file(tensors, path, {"config": json.dumps(config)})
    return path


@pytest.mark.parametrize(
    "changes",
    [{}, {"references": 0, "one_time": True}, {"control": False}, {"lora": True}, {"dim": 40, "num_heads": 4, "vace_layers": [0, 1, 2]}],
)
def test_other_fixtures_pass_and_a_wrong_value_fails(tmp_path, changes):
    path = own_fixture(tmp_path / "x.safetensors", **changes)
    result = check_file(path)
    assert result.passed, (result.message, result.errors)
    tensors = load_file(path)
    for name in [name for name in tensors if name.startswith(("expected.", "debug."))]:
        wrong = {**tensors, name: tensors[name] + (1 if tensors[name].dtype == torch.int32 else 1e-4)}
        metadata = {"config": json.dumps({**TINY, "vace_layers": [1], **{k: v for k, v in changes.items() if k in TINY}})}
        save_file(wrong, path, metadata)
        bad = check_file(path)
        assert not bad.passed and not bad.message, name


def command(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(word) for word in words]))


def test_the_command_prints_and_exits_by_the_result(tmp_path, capsys):
    path = own_fixture(tmp_path / "good.safetensors")
    assert command(tmp_path) == 0
    assert "PASS" in capsys.readouterr().out
    assert command(path, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and report["cases"][0]["errors"]["output"] < 1e-5

    tensors = load_file(path)
    tensors["expected.output"][0, 0, 0, 0, 0] = float("nan")
    save_file(tensors, tmp_path / "bad.safetensors", {"config": json.dumps({**TINY, "vace_layers": [1]})})
    assert command(tmp_path) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out and "PASS" in out and "1 of 2" in out
    assert command(tmp_path, "--json") == 1
    assert json.loads(capsys.readouterr().out)["cases"][0]["errors"]["output"] is None


def test_odd_files_and_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        run_parity(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no .safetensors"):
        run_parity(tmp_path)
    path = own_fixture(tmp_path / "x.safetensors")
    tensors, metadata = load_file(path), {"config": json.dumps({**TINY, "vace_layers": [1]})}

    def message(changed=None, given=metadata):
        save_file(tensors if changed is None else changed, path, given)
        result = check_file(path)
        assert not result.passed
        return result.message

    assert "config" in message(given={})
    assert "ffn_dim" in message(given={"config": json.dumps({k: v for k, v in TINY.items() if k != "ffn_dim"})})
    assert "blocks.0.ffn.0.bias" in message({k: v for k, v in tensors.items() if k != "blocks.0.ffn.0.bias"})
    assert "stray" in message({**tensors, "stray.weight": torch.ones(2)})
    assert "expected.output" in message({k: v for k, v in tensors.items() if k != "expected.output"})
    assert "not a parity fixture" in message({k: v for k, v in tensors.items() if k != "input.latents"})
    path.write_bytes(path.read_bytes()[:-9])
    assert "cut short" in check_file(path).message
