"""The loss on prepared clips, against the formulas written out; and what is dropped, when."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from spatia_model.training import models
from spatia_model.training.flow_module import FlowModule, collate, draw
from spatia_model.training.recipe import Recipe
from tests.spatia_model.data import fake_clips
from tests.spatia_model.training.tiny_run import parts


def recipe(**changes) -> Recipe:
    return Recipe(
        clips="x", **{"drop_projection": 0.0, "drop_text": 0.0, "drop_references": 0.0, "first_clip": 0.0, "max_references": 2, **changes}
    )


def batch(n: int = 3) -> dict:
    return collate([fake_clips.clip(i) for i in range(n)])


EMPTY = {"projection": torch.full((4, 4, 4, 4), 0.25), "holes": torch.ones(8, 4, 4, 4)}


class Config:
    def __init__(self, prediction: str):
        self.prediction = prediction


class Spy(nn.Module):
    """A transformer that answers with a fixed tensor and keeps what it was given."""

    def __init__(self, prediction: str):
        super().__init__()
        self.config, self.scale = Config(prediction), nn.Parameter(torch.ones(()))

    def forward(self, latents, times, context, control, references, lora):
        self.given = {"latents": latents, "times": times, "context": context, "control": control, "references": references, "lora": lora}
        return 0.5 * latents * self.scale


class Words(nn.Module):
    def encode(self, texts):
        self.texts = texts
        return torch.zeros(len(texts), 2, 3)


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_the_loss_is_the_paper_s(prediction):
    """x_t = (1 - t) x_0 + t X, loss |v - u|^2 over the frames to generate; history noised a little but marked as clean."""
    spy, words = Spy(prediction), Words()
    settings = recipe(moving_weight=2.0, uncovered_weight=0.5)
    drawn = draw(batch(), settings, (1, 2))
    loss, figures = FlowModule(spy, words, settings)(drawn)
    R, X, x0, known = drawn["references"].shape[2], drawn["latents"].float(), drawn["noise"], 2
    total, bins = 0.0, [[] for _ in range(5)]
    for b in range(3):
        t, level = float(drawn["t"][b]), float(drawn["history_level"][b])
        assert 0 <= level <= 0.05 and int(drawn["known"][b]) == known
        x = torch.cat([(1 - level) * X[b, :, :known] + level * x0[b, :, :known], (1 - t) * x0[b, :, known:] + t * X[b, :, known:]], 1)
        assert torch.allclose(spy.given["latents"][b, :, R:], x, atol=1e-6)
        assert torch.equal(spy.given["latents"][b, :, :R], drawn["references"][b].float())
        assert spy.given["times"][b].tolist() == pytest.approx([0.0] * (R + known) + [1000 * (1 - t)] * 2, abs=1e-2)
        goal = X[b] if prediction == "sample" else x0[b] - X[b]  # the released sign: noise - data
        error = (0.5 * x - goal).square().mean(0)[known:]
        weight = 1 + 2 * drawn["moving"][b, known:].float() / 255 + 0.5 * drawn["uncovered"][b, known:] / 255
        one = float((error * weight).mean())
        if prediction == "sample":
            one /= (1 - t) ** 2 + settings.sample_floor
        total += one / 3
        bins[min(4, int((1 - t) * 5))].append(one)
    assert float(loss) == pytest.approx(total, rel=1e-5)
    for i, values in enumerate(bins):
        value = float(figures[f"loss_t{i}"])
        assert value == pytest.approx(np.mean(values), rel=1e-5) if values else np.isnan(value)
    assert torch.equal(spy.given["control"], torch.cat([drawn["projection"], drawn["holes"]], 1).float())
    assert spy.given["lora"] == 0.0 and words.texts == drawn["texts"]


def test_what_does_not_count_teaches_nothing():
    """Cells that a clip leaves out have no gradient; without any left out the loss is the same to the bit."""
    settings = recipe()
    drawn = draw(batch(2), settings, (1, 2))
    plain, _ = FlowModule(Spy("velocity"), Words(), settings)(drawn)
    assert (drawn["counted"] == 255).all()
    left_out = drawn["counted"].clone()
    left_out[0, 2:, :, :2] = 0
    latents = drawn["latents"].float().requires_grad_()
    loss, figures = FlowModule(Spy("velocity"), Words(), settings)({**drawn, "latents": latents, "counted": left_out})
    loss.backward()
    assert not latents.grad[0, :, 2:, :, :2].any() and latents.grad[0, :, 2:, :, 2:].all() and latents.grad[1, :, 2:].any()
    full, _ = FlowModule(Spy("velocity"), Words(), settings)({**drawn, "counted": torch.full_like(left_out, 255)})
    assert torch.equal(full, plain) and bool(loss < plain)
    changed = {**drawn, "latents": drawn["latents"].clone(), "counted": left_out}
    changed["latents"][0, :, 2:, :, :2] += 3
    again, others = FlowModule(Spy("velocity"), Words(), settings)(changed)
    assert torch.allclose(again, loss) and float(others["mse_covered"]) == pytest.approx(float(figures["mse_covered"]))


def test_a_clip_says_what_counts():
    some = torch.zeros(4, 4, 4, dtype=torch.uint8)
    assert collate([fake_clips.clip(0), fake_clips.clip(1, counted=some)])["counted"].float().mean((1, 2, 3)).tolist() == [255, 0]


def test_it_runs_under_autocast():
    """Clips are float16, which bfloat16's autocast on a CPU does not join."""
    spy = Spy("velocity")
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = FlowModule(spy, Words(), recipe())(draw(batch(), recipe(), (1,)))
    assert torch.isfinite(loss)


def test_a_first_clip_knows_one_frame():
    drawn = draw(batch(), recipe(first_clip=1.0), (0,))
    assert drawn["known"].tolist() == [1, 1, 1]
    spy = Spy("velocity")
    FlowModule(spy, Words(), recipe())(drawn)
    R = drawn["references"].shape[2]
    assert (spy.given["times"][:, R] == 0).all() and (spy.given["times"][:, R + 1 :] > 0).all()


def test_what_is_drawn_depends_on_the_seed_alone():
    settings = recipe(drop_text=0.5, drop_projection=0.5, drop_references=0.5, first_clip=0.5)
    a, b, c = (draw(batch(), settings, seed, EMPTY) for seed in ((1, 2), (1, 2), (1, 3)))
    torch.randn(5)
    assert all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)
    assert not torch.equal(a["noise"], c["noise"])


def test_each_condition_is_dropped_about_as_often_as_asked():
    settings = recipe(drop_text=0.3, drop_projection=0.2, drop_references=0.4, first_clip=0.25, pure_noise=0.1)
    drawn = [draw(batch(), settings, (i,), EMPTY) for i in range(400)]
    assert np.mean([text == "" for d in drawn for text in d["texts"]]) == pytest.approx(0.3, abs=0.05)
    assert np.mean([bool((d["uncovered"][i] == 255).all()) for d in drawn for i in range(3)]) == pytest.approx(0.2, abs=0.05)
    assert np.mean([d["references"].shape[2] == 0 for d in drawn]) == pytest.approx(0.4 + 0.6 / 3, abs=0.07)
    assert {d["references"].shape[2] for d in drawn} == {0, 1, 2}
    assert np.mean([(d["known"] == 1).float().mean() for d in drawn]) == pytest.approx(0.25, abs=0.05)
    t = torch.cat([d["t"] for d in drawn])
    assert float((t == 0).float().mean()) == pytest.approx(0.1, abs=0.03)
    z = torch.logit(t[t > 0])
    assert abs(float(z.mean())) < 0.1 and abs(float(z.std()) - 1) < 0.1  # logit-normal


def test_a_dropped_projection_is_all_holes_and_keeps_what_moved():
    given = batch()
    drawn = draw(given, recipe(drop_projection=1.0), (0,), EMPTY)
    assert (drawn["projection"] == 0.25).all() and (drawn["holes"][:, :4] == 1).all()
    assert torch.equal(drawn["holes"][:, 4:], given["holes"][:, 4:])
    assert (drawn["uncovered"] == 255).all() and not (given["uncovered"] == 255).all()
    with pytest.raises(ValueError, match="no empty.safetensors.*--drop-projection 0"):
        draw(given, recipe(drop_projection=1.0), (0,))
    with pytest.raises(ValueError, match="several shapes need --drop-projection 0"):
        draw(given, recipe(drop_projection=1.0), (0,), {**EMPTY, "projection": torch.zeros(4, 3, 4, 4)})


def test_text_rows_are_padded_and_dropped_to_the_empty_text():
    rows = [fake_clips.clip(i, context=torch.full((2 + i, 3), 1.0 + i).half()) for i in range(2)]
    given = collate(rows, context_rows=6)
    assert given["context"].shape == (2, 6, 3) and given["context"][1].sum() == 2 * 9 and not given["context"][0, 2:].any()
    drawn = draw(given, recipe(drop_text=1.0), (0,), {**EMPTY, "context": torch.full((1, 3), 7.0)})
    assert (drawn["context"][:, 0] == 7).all() and not drawn["context"][:, 1:].any()
    with pytest.raises(ValueError, match="v0-0 has no text rows"):
        collate([fake_clips.clip(0)], context_rows=6)


def test_a_batch_shows_as_many_references_as_all_have():
    assert collate([fake_clips.clip(0, references=2), fake_clips.clip(1, references=1)])["references"].shape == (2, 4, 1, 4, 4)
    assert collate([fake_clips.clip(0, references=0)])["references"].shape == (1, 4, 0, 4, 4)


# -- what is trained ----------------------------------------------------------------------------------------------------


def gradients(trainable: str) -> tuple[set[str], set[str]]:
    """Names with gradients after one backward pass, and all names."""
    held = parts()
    settings = recipe(trainable=trainable, lora_rank=2)
    models.choose(held, settings)
    module = FlowModule(held.transformer, held.text, settings)
    module(draw(batch(), settings, (0,)))[0].backward()
    return {n for n, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}, {
        n for n, _ in module.named_parameters()
    }


def test_control_trains_the_control_branch_and_nothing_else():
    got, names = gradients("control")
    assert got == {n for n in names if n.removeprefix("transformer.").startswith(("vace_", "control_"))} and len(got) > 10


def test_lora_trains_adapters_of_the_main_blocks_and_nothing_else():
    got, names = gradients("lora")
    adapters = {n for n in names if ".lora_" in n}
    assert got <= adapters and {n for n in got if ".lora_B." in n} == {n for n in adapters if ".lora_B." in n}  # B = 0 hides A at first
    assert all(".blocks." in n and "vace" not in n for n in adapters) and len(adapters) == 2 * 10 * 2


def test_gathered_adapters_make_the_released_file(tmp_path):
    """Sharded runs gather what was trained by name; the file is the one that the model itself would write."""
    from safetensors.torch import load_file

    from spatia_model.generator.lora import save_lora

    held, settings = parts(), recipe(trainable="lora", lora_rank=2)
    models.choose(held, settings)
    found = models.released_lora(models.trained_tensors(FlowModule(held.transformer, held.text, settings)))
    save_lora(held.transformer, tmp_path / "lora.safetensors")
    expected = load_file(tmp_path / "lora.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_all_trains_text_and_transformer():
    got, names = gradients("all")
    assert any(n.startswith("text.") for n in got) and any("vace" in n for n in got) and len(got) > 0.9 * len(names)


def test_a_control_branch_begins_as_a_copy_that_changes_nothing():
    from spatia_model.generator.transformer import SpatiaTransformer
    from tests.spatia_model.tiny import TRANSFORMER

    torch.manual_seed(0)
    plain = {"control_in_main": False, "control_to_output": False, "output_gates": False, "prediction": "velocity"}
    transformer = SpatiaTransformer(**{**TRANSFORMER, **plain}).eval()
    models.control_from_main(transformer)
    own, main = transformer.vace_blocks[0].state_dict(), transformer.blocks[0].state_dict()
    assert all(torch.equal(own[name], main[name]) for name in main)
    x, t, text = torch.randn(1, 4, 3, 4, 4), torch.full((1, 3), 500.0), torch.randn(1, 2, 16)
    with torch.no_grad():
        assert torch.equal(transformer(x, t, text, torch.randn(1, 12, 3, 4, 4)), transformer(x, t, text))
    assert torch.equal(transformer.vace_patch_embedding.weight[:, :4], transformer.patch_embedding.weight)
    assert not transformer.vace_patch_embedding.weight[:, 4:].any()


def test_checkpointing_changes_no_gradient():
    found = []
    for checkpointing in (False, True):
        held = parts()
        settings = recipe(trainable="control", checkpointing=checkpointing)
        models.choose(held, settings)
        module = FlowModule(held.transformer, held.text, settings)
        module(draw(batch(), settings, (0,)))[0].backward()
        found.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    assert all(torch.allclose(found[0][n], found[1][n], atol=1e-6) for n in found[0])


def test_weights_of_an_earlier_stage_are_taken_over(tmp_path):
    from safetensors.torch import save_file

    held = parts()
    module = FlowModule(held.transformer, held.text, recipe())
    save_file({"transformer.proj_out.bias": torch.full_like(held.transformer.proj_out.bias, 3.0)}, tmp_path / "own.safetensors")
    save_file({"head.head.bias": torch.full_like(held.transformer.proj_out.bias, 4.0)}, tmp_path / "official.safetensors")
    models.start_from(module, str(tmp_path / "own.safetensors"))
    assert (held.transformer.proj_out.bias == 3).all()
    models.start_from(module, str(tmp_path / "official.safetensors"))
    assert (held.transformer.proj_out.bias == 4).all()
    for name, message in (
        ("nothing.weight", "holds nothing.weight, which this model has not"),
        ("head.head.bias", r"is \(1,\), the model has"),
    ):
        save_file({name: torch.zeros(1)}, tmp_path / "wrong.safetensors")
        with pytest.raises(ValueError, match=message):
            models.start_from(module, str(tmp_path / "wrong.safetensors"))
