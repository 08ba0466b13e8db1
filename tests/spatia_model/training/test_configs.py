"""The Accelerate configs are such as `accelerate launch` reads, and name modules that exist."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spatia_model.generator.transformer import SpatiaTransformer
from spatia_model.training import accelerated, models
from spatia_model.training.recipe import Recipe
from spatia_model.training.stage_control import ControlStage
from tests.spatia_model.data import fake_clips
from tests.spatia_model.training import tiny_run
from tests.spatia_model.training.test_accelerated import environment
from tests.spatia_model.training.tiny_run import train

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs" / "accelerate"


@pytest.mark.parametrize("name", ["multi_gpu", "fsdp", "deepspeed_zero2"])
def test_accelerate_reads_it(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))  # refuses unknown keys
    kind = getattr(config.distributed_type, "value", config.distributed_type)
    assert kind == {"multi_gpu": "MULTI_GPU", "fsdp": "FSDP", "deepspeed_zero2": "DEEPSPEED"}[name]
    assert config.num_processes == 8


def test_fsdp_wraps_the_transformer_s_blocks():
    from accelerate.commands.config.config_args import load_config_from_file

    options = load_config_from_file(str(CONFIGS / "fsdp.yaml")).fsdp_config
    assert options is not None
    assert options["fsdp_transformer_layer_cls_to_wrap"].split(",") == SpatiaTransformer._no_split_modules
    assert options["fsdp_version"] == 2 and options["fsdp_state_dict_type"] == "SHARDED_STATE_DICT"


def test_they_are_all_here():
    assert sorted(path.name for path in CONFIGS.iterdir()) == ["deepspeed_zero2.yaml", "fsdp.yaml", "multi_gpu.yaml"]
    comments = (CONFIGS / "fsdp.yaml").read_text()
    assert "--frozen-bf16" in comments


def launched(name: str, clips: Path, out: Path, steps: int, **settings) -> str:
    """A run of two processes under a config; what it said."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{name}.yaml"), "--num_processes", "2"]
    launch += ["--main_process_port", "0", "-m", "tests.spatia_model.training.sharded_run", str(clips), str(out), str(steps)]
    done = subprocess.run([*launch, json.dumps(settings)], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp", "deepspeed_zero2"])
def test_shared_out_it_learns_what_one_process_learns_and_resumes(tmp_path, name):
    """Two processes, gloo; see `sharded_run`."""
    if name == "deepspeed_zero2":
        pytest.importorskip("deepspeed")
    clips = fake_clips.write(tmp_path / "clips")
    settings = {"validate_every": 2, "validation_clips": 1, "clip_norm": 0.5, "precision": "bf16"}
    log = launched(name, clips, tmp_path / "two", 4, **settings)
    assert "on 2 process(es)" in log
    two = load_file(tmp_path / "two" / "model" / "weights.safetensors")
    for rank in (0, 1) if name == "fsdp" else ():
        told = json.loads((tmp_path / "two" / f"rank{rank}.json").read_text())
        assert told["wrapped"] == ["FlowModule", *sorted(SpatiaTransformer._no_split_modules)]
        assert told["sharded"] == told["parameters"] and 0.4 < told["share"] < 0.6  # each holds about half of everything
    train(clips, tmp_path / "one", steps=4, **settings)
    one = load_file(tmp_path / "one" / "model" / "weights.safetensors")
    assert one.keys() == two.keys()
    start = models.trained_tensors(ControlStage(tiny_run.recipe(clips, **settings), tiny_run.parts()).module)
    moved, apart = (sum(float((a[key] - b[key]).abs().sum()) for key in a) for a, b in ((start, one), (one, two)))
    assert apart < 0.1 * moved  # bfloat16 rounds otherwise in other batches, and Adam makes steps of full size of next to no gradient
    expected, figures = (
        [json.loads(line) for line in (tmp_path / run / "validation.jsonl").read_text().splitlines()] for run in ("one", "two")
    )
    for a, b in zip(expected, figures, strict=True):
        assert all(abs(a[key] - b[key]) < 0.02 * abs(a[key]) for key in ("loss", "psnr_covered"))
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step-0000004")  # as if killed before
    shutil.rmtree(tmp_path / "two" / "model")
    assert "resumed at step 2" in launched(name, clips, tmp_path / "two", 4, **settings)
    again = load_file(tmp_path / "two" / "model" / "weights.safetensors")
    assert all(torch.equal(two[key], again[key]) for key in two)


def test_the_launcher_s_deepspeed_settings_are_such_as_accelerator_reads():
    """What `accelerate launch` puts into the environment goes through int() and float() there."""
    from accelerate.commands.config.config_args import load_config_from_file

    options = load_config_from_file(str(CONFIGS / "deepspeed_zero2.yaml")).deepspeed_config
    assert options is not None
    assert int(options["gradient_accumulation_steps"]) >= 1 and float(options["gradient_clipping"]) > 0 and options["zero_stage"] == 2


def test_deepspeed_is_told_the_recipe():
    config = {"gradient_clipping": 1.0, "bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}
    accelerated._deepspeed(config, Recipe(clips="c", micro_batch=4, batch=24, clip_norm=0.5), 2)
    assert config["train_micro_batch_size_per_gpu"] == 4 and config["gradient_accumulation_steps"] == 3
    assert config["gradient_clipping"] == 0.5
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"} and config["bf16"] == {"enabled": False}
    accelerated._deepspeed(config, Recipe(clips="c", precision="no"), 1)
    assert not config["torch_autocast"]["enabled"]
    with pytest.raises(ValueError, match="fp16 is not for DeepSpeed here: take bf16"):
        accelerated._deepspeed(config, Recipe(clips="c", precision="fp16"), 1)
