"""The language agent: sentences become plans, plans become steps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.agents.loading import load, small_truth


@pytest.fixture(scope="module")
def language():
    return load("language_agent")


@pytest.mark.parametrize(
    ("sentence", "plan"),
    [
        ("go to the green box, then come back", [("go", "green", 0), ("back", "", 0)]),
        ("Find the red chair and return.", [("go", "red", 0), ("back", "", 0)]),
        ("turn left 90, walk 1.5 m, look around", [("turn", "", -90), ("walk", "", 1.5), ("look", "", 360)]),
        ("turn right; turn around; go forward", [("turn", "", 90), ("turn", "", 180), ("walk", "", 1)]),
        ("walk to the blue thing then go back", [("go", "blue", 0), ("back", "", 0)]),
    ],
)
def test_sentences_become_plans(language, sentence, plan):
    assert [(goal.kind, goal.color, goal.amount) for goal in language.read_plan(sentence)] == plan


@pytest.mark.parametrize("sentence", ["", " , ", "sing a song", "go to the table"])
def test_what_is_not_understood_is_said(language, sentence):
    with pytest.raises(ValueError, match="say"):
        language.read_plan(sentence)


def test_a_model_may_write_the_plan(language, capsys):
    def write(prompt):
        assert "fetch the emerald thing" in prompt
        return "go green thing\nturn -45\nback\nInstruction: something else\ngo red ball"

    plan = language.written_plan("fetch the emerald thing", write)
    assert [(goal.kind, goal.color, goal.amount) for goal in plan] == [("go", "green", 0), ("turn", "", -45), ("back", "", 0)]
    plan = language.written_plan("turn left", lambda prompt: "I would love to help you")
    assert [(goal.kind, goal.amount) for goal in plan] == [("turn", -90)]
    assert "wrote no plan" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_transformers_model_is_asked(language, tmp_path):
    """Tiny and random, so it writes nonsense; the rules take over."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<unk>", "<end>", *"abcdefghijklmnopqrstuvwxyz", "left", "turn"])}
    tokenizer = Tokenizer(models.WordLevel(words, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>").save_pretrained(tmp_path)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(words), n_positions=512, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    agent = language.LanguageAgent(small_truth(), 0, "turn left 30", llm=str(tmp_path))
    assert [(goal.kind, goal.amount) for goal in agent.goals] == [("turn", -30)]


@pytest.mark.parametrize("discrete", [False, True])
def test_walks_turns_and_the_way_back(language, discrete):
    env = small_truth(discrete=discrete)
    agent = language.LanguageAgent(env, 0, "turn right 45, walk 0.5, turn left 90, come back")
    observation, info = env.reset(seed=1)
    agent.reset(observation, info)
    start, farthest = info["poses"][-1], 0.0
    for _ in range(40):
        action = agent.act(observation, info)
        if agent.done:
            break
        assert env.action_space.contains(action)
        observation, _, _, _, info = env.step(action)
        farthest = max(farthest, float(np.linalg.norm(info["poses"][-1][:3, 3] - start[:3, 3])))
    assert agent.done and not agent.given_up and farthest > 0.2
    end = info["poses"][-1]
    assert np.linalg.norm(end[:3, 3] - start[:3, 3]) < 0.3
    assert math.degrees(math.acos(min(1.0, float(end[:3, 2] @ start[:3, 2])))) < 16


class Cloud:
    """A world that remembers a green heap at a place, and shows it when it is in view."""

    def __init__(self, place):
        import torch

        rng = np.random.default_rng(0)
        self.positions = torch.from_numpy(np.asarray(place) + rng.normal(0, 0.05, (40, 3)))
        self.colors = torch.tensor([[36, 178, 62]] * 40, dtype=torch.uint8)


def picture(column: int | None, size: int = 6) -> np.ndarray:
    frame = np.full((1, 64, 64, 3), 120, np.uint8)
    if column is not None:
        frame[0, 28 : 28 + size, column : column + size] = (36, 178, 62)
    return frame


@pytest.mark.parametrize(
    ("place", "seen", "turns"), [((2.0, 0, 0.5), None, 2), ((-2.0, 0, 0.5), None, 1), ((9, 0, 9), 50, 2), ((9, 0, 9), 4, 1)]
)
def test_things_are_found_in_the_picture_and_in_the_memory(language, place, seen, turns):
    env = small_truth(discrete=True)
    agent = language.LanguageAgent(env, 0, "go to the green box")
    agent.world = type("World", (), {"memory": Cloud(place)})()
    focal = 32 / math.tan(math.radians(75) / 2)
    info = {"frames": picture(seen), "poses": np.eye(4)[None], "K": np.array([[focal, 0, 32], [0, focal, 32], [0, 0, 1.0]])}
    agent.reset(None, info)
    assert agent.act(None, info) == turns


def test_it_stops_before_what_fills_the_view(language):
    agent = language.LanguageAgent(small_truth(discrete=True), 0, "go to the green box")
    agent.world = type("World", (), {"memory": Cloud((0, 0, 5))})()
    info = {"frames": picture(10, 34), "poses": np.eye(4)[None], "K": np.array([[40, 0, 32], [0, 40, 32], [0, 0, 1.0]])}
    agent.reset(None, info)
    assert agent.act(None, info) == 5 and agent.done


def test_the_tasks_instruction_is_followed_when_none_is_given(language):
    env = small_truth(discrete=True, task={"name": "follow-text", "observe": "info"})
    agent = language.LanguageAgent(env, 0)
    with pytest.raises(ValueError, match="no instruction"):
        agent.reset(None, {"poses": np.eye(4)[None]})
    agent.reset(None, {"poses": np.eye(4)[None], "instruction": "go to the red thing"})
    assert agent.plan[0].color == "red"
