"""The Accelerate configs are such as `accelerate launch` reads, and name modules that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from spatia_model.generator.transformer import SpatiaTransformer

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "accelerate"


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
