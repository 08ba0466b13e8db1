"""PPO: training leaves a policy that acts, goes on where it stopped, and evaluates the same twice."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.agents.loading import load, small_truth

pytest.importorskip("stable_baselines3")
SMALL = {"image_size": 16, "supersample": 1, "kind": "room", "movers": 0}


@pytest.fixture(scope="module")
def ppo():
    return load("ppo")


@pytest.fixture(scope="module")
def trained(ppo, tmp_path_factory):
    out = tmp_path_factory.mktemp("ppo")
    log = ppo.train("SpatiaTruth-v0", "reach-view", out, seed=1, steps=64, num_envs=2, **SMALL)
    return out, log


def test_training_writes_a_policy_and_its_curve(ppo, trained):
    out, log = trained
    assert log["steps"] == 64 and [point["steps"] for point in log["curve"]] == [16, 32, 48, 64]
    assert json.loads((out / "curve.json").read_text()) == log
    tensors, known = ppo.read_policy(out / "policy.safetensors")
    assert known == {"env": "SpatiaTruth-v0", "task": "reach-view", "seed": 1, "steps": 64}
    fresh = ppo.Brain().state_dict()
    assert {name[6:] for name in tensors if name.startswith("brain.")} == set(fresh)
    assert not list(out.glob("*.new"))


def test_training_goes_on_from_where_it_stopped(ppo, trained, tmp_path):
    out, _ = trained
    for name in ("policy.safetensors", "curve.json"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    done = ppo.train("SpatiaTruth-v0", "reach-view", tmp_path, seed=1, steps=64, num_envs=2, **SMALL)
    assert done["steps"] == 64  # nothing left to do
    before = ppo.read_policy(tmp_path / "policy.safetensors")[0]
    more = ppo.train("SpatiaTruth-v0", "reach-view", tmp_path, seed=1, steps=128, num_envs=2, **SMALL)
    assert [point["steps"] for point in more["curve"]] == list(range(16, 129, 16))
    after = ppo.read_policy(tmp_path / "policy.safetensors")[0]
    change = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < change < 0.5  # a step from the weights that were kept, not new ones
    with pytest.raises(ValueError, match="another training"):
        ppo.train("SpatiaTruth-v0", "reach-view", tmp_path, seed=2, steps=128, num_envs=2, **SMALL)


def test_the_policy_is_an_agent(ppo, trained, tmp_path):
    policy = str(trained[0] / "policy.safetensors")
    env = small_truth(discrete=True, task={"name": "reach-view", "observe": "info"})
    walks = []
    for seed in (4, 4, 5):
        agent = ppo.PpoPolicy(env, seed, policy)
        observation, info = env.reset(seed=1)
        agent.reset(observation, info)
        walks.append([])
        for _ in range(6):
            walks[-1].append(agent.act(observation, info))
            observation, _, ended, _, info = env.step(walks[-1][-1])
            if ended:
                break
    assert walks[0] == walks[1] and walks[0] != walks[2]
    with pytest.raises(ValueError, match="discrete=True"):
        ppo.PpoPolicy(small_truth(), 0, policy)
    with pytest.raises(ValueError, match="no policy of this agent"):
        ppo.PpoPolicy(env, 0, "nowhere.safetensors")
    tensors, known = ppo.read_policy(policy)
    tensors["action.weight"] = tensors["action.weight"][:, :5].contiguous()
    save_file(tensors, tmp_path / "old.safetensors", metadata={"spatia_ppo": json.dumps(known)})
    with pytest.raises(ValueError, match="another version of this agent"):
        ppo.PpoPolicy(env, 0, str(tmp_path / "old.safetensors"))


def test_evaluation_is_the_same_twice_and_however_many_worlds_run(ppo):
    found = [
        ppo.evaluate(ppo.RandomMotions, "SpatiaTruth-v0", "reach-view", episodes=3, seed=2_000_003, num_envs=n, **SMALL) for n in (1, 2)
    ]
    assert found[0]["each"] == found[1]["each"] and found[0]["episodes"] == 3
    assert found[0]["return"] == pytest.approx(np.mean([one[0] for one in found[0]["each"]]), abs=1e-3)


def test_rewards_are_scaled_and_told_as_they_are(ppo):
    made = [ppo.vec_env(ppo.worlds("SpatiaTruth-v0", "explore", 1, **SMALL), ppo.Beginnings("SpatiaTruth-v0"), 3, s) for s in (1.0, 0.1)]
    walks = []
    for envs in made:
        envs.reset()
        walks.append([float(envs.step(np.array([2]))[1][0]) for _ in range(3)])
        assert envs.returns[0] == pytest.approx(sum(walks[0]), rel=1e-4)
    assert sum(walks[0]) > 0 and walks[1] == pytest.approx([0.1 * reward for reward in walks[0]], rel=1e-4)


def test_senses_tell_where_the_goal_is(ppo):
    pose, goal = np.eye(4), np.eye(4)
    pose[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]  # looks along +x
    goal[:3, 3] = [2, 0, 1]
    frame = np.zeros((1, 64, 64, 3), np.uint8)
    frame[0, :, 32:] = 200
    seen = ppo.senses({"frames": frame, "poses": pose[None], "goal_pose": goal, "coverage": 0.25}, 2)
    numbers = seen["numbers"]
    assert numbers[0] / numbers[1] == pytest.approx(-0.5), "one metre to the left, two ahead"
    assert np.allclose(numbers[2:4], [5**0.5, 0]), "that far, and not near"
    assert np.allclose(numbers[4:6], [-2, 0]), "its view points to the left"
    assert numbers[6] == 0.25 and numbers[8:].tolist() == [0, 0, 0, 1, 0, 0, 0]
    there = ppo.senses({"frames": frame, "poses": goal[None], "goal_pose": goal, "coverage": 0.0, "collided": True}, None)["numbers"]
    assert there[:6].tolist() == [0, 0, 0, 1, 0, 1] and there[8] == 1, "on the goal: no direction, and bumped"
    assert seen["image"].shape == (3, 32, 32) and seen["image"][0, 0, 0] == 0 and seen["image"][0, 0, -1] == 200
    assert ppo.senses({"frames": frame, "poses": pose[None], "coverage": 0.0}, None)["numbers"].tolist() == [0.0] * 15


@pytest.mark.slow
def test_the_recipe_learns_to_reach_a_goal(ppo, tmp_path, monkeypatch):
    """Where pictures cost nothing: the goal's place alone is enough, and few steps must already show it."""
    from dataclasses import replace

    from spatia_model.types import Clip, Perception
    from tests.fakes import FakeWorld, _nothing

    class Blind(FakeWorld):
        def advance(self, state, path, text="", memory=True):
            size, frames = self.config.image_size, state.frames[-1:].repeat(len(path), 1, 1, 1)
            ones = torch.ones(len(path), size, size)
            clip = Clip(frames, path, state.camera, _nothing(len(path), size), Perception(ones, ones, 0 * ones), (), "")
            after = replace(state, frames=frames[-1:], T_world_camera=path[-1:], frame_count=state.frame_count + len(path))
            return after, clip

    class Black:
        def __init__(self, *_):
            pass

        def options(self, world):
            return {"image": np.zeros((24, 24, 3), np.uint8)}

    monkeypatch.setattr(ppo, "Beginnings", Black)
    monkeypatch.setattr(ppo, "write_json", lambda file, content: None)  # a fake world is no JSON
    log = ppo.train("SpatiaNav-v0", "reach-view", tmp_path, seed=0, steps=1536, num_envs=8, model=Blind(), obstacles=None)
    success = [point["success"] for point in log["curve"] if point["success"] is not None]
    assert np.mean(success[-6:]) > 0.5, success  # random motions: 0.03
