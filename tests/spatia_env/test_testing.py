"""The memory checks pass on a world that keeps its promises and fail on worlds that break one each."""

from __future__ import annotations

import copy
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from scipy.ndimage import gaussian_filter, map_coordinates

import spatia_env  # noqa: F401  registers the ids
from spatia_env import FrameByFrame, testing

SIZE = 48
FOV = math.radians(75)


class Panorama(gym.Env[np.ndarray, np.ndarray]):
    """A camera in the middle of a painted cylinder. Action: (2,) fractions of 45 degrees to the right and of 30 degrees up."""

    def __init__(self, fault: str = "", max_steps: int | None = None) -> None:
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.fault, self.max_steps = fault, max_steps
        focal = SIZE / 2 / math.tan(FOV / 2)
        self.K = np.array([[focal, 0, SIZE / 2], [0, focal, SIZE / 2], [0, 0, 1.0]])
        self.episodes = 0

    def _paint(self) -> np.ndarray:
        noise = gaussian_filter(self.np_random.normal(size=(180, 360, 3)), (4, 4, 0), mode="wrap")
        return 128 + 60 * noise / noise.std()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        if self.fault == "ignores the seed":
            seed = None
        super().reset(seed=None if self.fault == "leaks" and self.episodes else 5 if self.fault == "one world" else seed)
        self.episodes += 1
        self.texture, self.yaw, self.pitch, self.steps, self.shift = self._paint(), 0.0, 0.0, 0, 0.0
        return self._view(), self._info()

    def step(self, action: np.ndarray):
        gain = 1 / 3 if self.fault == "turns too little" else 1.0
        self.yaw += gain * float(action[0]) * math.radians(45)
        self.pitch += gain * float(action[1]) * math.radians(30)
        if self.fault == "stops at a wall" and self.steps == 1:
            self.shift = 0.5
        self.steps += 1
        if self.fault == "forgets":
            angles = np.radians(np.arange(360) - 180)
            unseen = np.abs((angles - self.yaw + math.pi) % (2 * math.pi) - math.pi) > FOV / 2 + 0.1
            self.texture[:, unseen] = self._paint()[:, unseen]
        if self.fault == "drifts":
            self.texture += 8
        ended = self.max_steps is not None and self.steps >= self.max_steps
        reward = float(np.random.random()) if self.fault == "rewards by chance" else 0.0
        return self._view(), reward, ended, False, self._info()

    def _view(self) -> np.ndarray:
        if self.fault == "frozen":
            return np.full((SIZE, SIZE, 3), 128, np.uint8)
        v, u = np.mgrid[0:SIZE, 0:SIZE] + 0.5
        x, y = (u - SIZE / 2) / self.K[0, 0], (v - SIZE / 2) / self.K[0, 0]
        column = 180 + np.degrees(self.yaw + np.arctan(x))
        row = 90 + np.degrees(np.arctan(y / np.sqrt(1 + x * x))) - np.degrees(self.pitch)
        stack = [map_coordinates(self.texture[..., c], [row, column], order=1, mode="grid-wrap") for c in range(3)]
        picture = np.stack(stack, -1)
        if self.fault == "flickers":
            picture = picture + self.np_random.normal(0, 40, picture.shape)
        return np.clip(picture, 0, 255).astype(np.uint8)

    def _info(self) -> dict[str, Any]:
        pose = np.eye(4)
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        pose[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
        pose[0, 3] = self.shift
        return {"poses": pose[None], "K": self.K.copy()}

    def snapshot(self) -> dict[str, Any]:
        kept = {name: copy.deepcopy(getattr(self, name)) for name in ("texture", "yaw", "pitch", "steps")}
        return kept if self.fault == "snapshot without chance" else kept | {"chance": self.np_random.bit_generator.state}

    def restore(self, mark: dict[str, Any]) -> None:
        for name in ("texture", "yaw", "pitch", "steps"):
            setattr(self, name, copy.deepcopy(mark[name]))
        if "chance" in mark:
            self.np_random.bit_generator.state = mark["chance"]


ADAPTER = testing.Adapter(actions=lambda twist: [np.array([twist[4] / math.radians(45), twist[3] / math.radians(30)], np.float32)])
HONEST = {
    name: getattr(testing, f"assert_{name}")
    for name in (
        "deterministic",
        "seed_matters",
        "returns_to_view",
        "static_memory",
        "stands_still",
        "snapshot_restores",
        "turns_as_asked",
    )
}


def test_every_check_has_its_twin_and_is_listed():
    assert set(HONEST) == set(testing.CHECKS)
    assert all(name in dir(testing) for name in testing.__all__)


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_world_passes(name):
    found = HONEST[name](Panorama(), ADAPTER, seed=3)
    assert found.passed and bool(found) and found.name == name and found.message
    assert math.isfinite(found.value)


@pytest.mark.parametrize(
    ("name", "fault", "why"),
    [
        ("deterministic", "ignores the seed", "views differ"),
        ("deterministic", "leaks", "views differ"),
        ("deterministic", "rewards by chance", "reward"),
        ("seed_matters", "one world", "differ by up to 0"),
        ("returns_to_view", "forgets", "alike"),
        ("returns_to_view", "frozen", "went nowhere"),
        ("returns_to_view", "drifts", "alike"),
        ("returns_to_view", "stops at a wall", "from where it should be"),
        ("static_memory", "forgets", "alike"),
        ("static_memory", "frozen", "went nowhere"),
        ("stands_still", "flickers", "alike"),
        ("stands_still", "drifts", "alike"),
        ("stands_still", "frozen", "went nowhere"),
        ("turns_as_asked", "turns too little", "turned by"),
        ("turns_as_asked", "frozen", "turned by"),
    ],
)
def test_a_faulty_world_fails(name, fault, why):
    with pytest.raises(AssertionError, match=why):
        HONEST[name](Panorama(fault), ADAPTER, seed=3)
    assert not testing.CHECKS[name](Panorama(fault), ADAPTER, seed=3)


def test_a_snapshot_that_forgets_the_dice_fails():
    class Dicey(Panorama):
        def _view(self) -> np.ndarray:
            picture = super()._view()
            return picture + self.np_random.integers(0, 2, picture.shape).astype(np.uint8)

    testing.assert_snapshot_restores(Dicey(), ADAPTER)
    with pytest.raises(AssertionError, match="from one snapshot"):
        testing.assert_snapshot_restores(Dicey("snapshot without chance"), ADAPTER)


def test_snapshots_of_another_kind_can_be_given():
    env = Panorama()
    marks = []
    testing.assert_snapshot_restores(env, ADAPTER, snapshot=lambda: marks.append(env.snapshot()), restore=lambda _: env.restore(marks[0]))
    with pytest.raises(ValueError, match="has no snapshot"):
        testing.check_snapshot_restores(gym.Env(), ADAPTER)  # type: ignore[abstract]


@pytest.mark.parametrize("degrees", [-20.0, 8.0, 20.0])
def test_turns_are_measured(degrees):
    found = testing.check_turns_as_asked(Panorama(), ADAPTER, seed=4, degrees=degrees)
    assert abs(found.figures["measured_degrees"] - degrees) < 0.5 and found.figures["correlation"] > 0.9
    little = testing.check_turns_as_asked(Panorama("turns too little"), ADAPTER, seed=4, degrees=degrees)
    assert abs(little.figures["measured_degrees"] - degrees / 3) < 0.5


def test_moving_things_may_be_left_out():
    class Clock(Panorama):
        """A patch of the picture shows the time."""

        def _view(self):
            picture = super()._view()
            picture[:16] = 40 * self.steps % 256
            return picture

        def _info(self):
            mask = np.zeros((1, SIZE, SIZE), bool)
            mask[:, :16] = True
            return super()._info() | {"dynamic": mask}

    testing.assert_returns_to_view(Clock(), ADAPTER, seed=3)
    blind = testing.Adapter(actions=ADAPTER.actions, moving=lambda info: None)
    assert testing.check_returns_to_view(Clock(), blind, seed=3).value < 20


def test_an_episode_that_ends_too_early_is_said():
    with pytest.raises(ValueError, match="raise the env's max_steps"):
        testing.check_returns_to_view(Panorama(max_steps=4), ADAPTER)
    testing.assert_returns_to_view(Panorama(max_steps=6), ADAPTER)
    assert testing.assert_deterministic(Panorama(max_steps=2), ADAPTER).figures["steps"] == 2


def test_pictures_in_other_places():
    class Nested(gym.ObservationWrapper):
        def observation(self, observation):
            return {"rgb": observation, "state": np.zeros(3)}

    testing.assert_returns_to_view(Nested(Panorama()), ADAPTER, seed=3)
    with pytest.raises(ValueError, match=r"Adapter\(view="):
        testing.rgb_of({"camera_1": np.zeros((4, 4, 3), np.uint8)}, {})
    gray = testing.Adapter(actions=ADAPTER.actions, view=lambda observation, info: observation.mean(-1))
    with pytest.raises(ValueError, match="uint8"):
        testing.check_deterministic(Panorama(), gray)


def test_arguments_that_make_no_sense():
    with pytest.raises(ValueError, match="give an adapter"):
        testing.check_deterministic(Panorama())
    with pytest.raises(ValueError, match="at most 30"):
        testing.check_turns_as_asked(Panorama(), ADAPTER, degrees=90)
    with pytest.raises(ValueError, match="at least 1"):
        testing.check_stands_still(Panorama(), ADAPTER, steps=0)


@pytest.mark.parametrize("name", sorted(set(HONEST) - {"turns_as_asked"}))
def test_the_true_world_passes(name):
    env = gym.make("SpatiaTruth-v0", world=2_000_003, movers=0, image_size=32, supersample=1)
    HONEST[name](env, seed=1)


@pytest.mark.parametrize("wrap", [lambda env: env, FrameByFrame])
def test_the_true_world_in_discrete_steps_and_frame_by_frame(wrap):
    env = wrap(gym.make("SpatiaTruth-v0", world=2_000_003, movers=0, discrete=True, image_size=64, supersample=1))
    assert testing.assert_returns_to_view(env, seed=1).value == testing.EQUAL
    testing.assert_turns_as_asked(env, seed=1)


def test_motions_that_nav_cannot_do():
    env = gym.make("SpatiaTruth-v0", world=2_000_003, discrete=True, image_size=32, supersample=1)
    adapter = testing.adapter_for(env)
    assert adapter.actions(testing.motion(forward=0.5)) == [0, 0]
    assert adapter.actions(testing.motion(yaw=-30)) == [1, 1] and adapter.actions(testing.motion(pitch=15)) == [3]
    assert adapter.actions(testing.motion()) == [5]
    for impossible in (testing.motion(forward=-0.25), testing.motion(yaw=10), testing.motion(forward=0.25, yaw=15)):
        with pytest.raises(ValueError, match="cannot move"):
            adapter.actions(impossible)


def test_long_motions_are_split():
    env = gym.make("SpatiaTruth-v0", world=2_000_003, image_size=32, supersample=1)
    actions = testing.adapter_for(env).actions(testing.motion(forward=1.2, yaw=30))
    assert len(actions) == 3 and all(env.action_space.contains(action) for action in actions)
    assert math.isclose(sum(float(action["camera"][2]) for action in actions) * 0.5, 1.2, rel_tol=1e-6)


def test_the_example_of_the_document():
    """Run as it stands."""
    import re
    from pathlib import Path

    text = (Path(__file__).resolve().parents[2] / "docs" / "agents.md").read_text()
    example = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def test_" in block)
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102
    names["test_the_world_remembers"]()


def test_the_document_tells_the_checks_and_their_thresholds():
    import inspect
    import re
    from pathlib import Path

    text = (Path(__file__).resolve().parents[2] / "docs" / "agents.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", text, re.MULTILINE))
    for name, check in testing.CHECKS.items():
        given = inspect.signature(check).parameters
        threshold = given["at_least" if "at_least" in given else "at_most"].default
        assert told[name] == "equal" if threshold == 0 else f"{threshold:g}" in told[name], name
