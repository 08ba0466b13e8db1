"""Tasks with a view to be at: ReachView and ReturnHome."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces

from spatia_env.compare import psnr, ssim
from spatia_env.episode import turned_back
from spatia_env.tasks.base import Scene, Scouting, State, Task, Verdict, check_choice, check_number

OBSERVE = ("dict", "channels", "info")
REACH = 10.0  # metres: goals farther away than this are shown at this distance
BEST_PSNR = 99.0  # dB said of two equal pictures


class _Goal(Task):
    """What both share: the goal's pose and picture, how they are offered, and how near the camera is.

    `observe` says how the goal is offered:

    * "dict": `Dict(image=Box(H, W, 3), goal_image=Box(H, W, 3), goal=Box(G,))`, for stable-baselines3's `MultiInputPolicy`. `goal` is where
      the goal is, seen from the camera: right, down, forward (m), sine and cosine of its heading to the right, how far it looks up (rad).
    * "channels": `Box(H, W, 6)`, the frame and the goal's picture behind each other, for `CnnPolicy`; where the goal is stays in info.
    * "info": the frame alone; the goal is in info only.
    """

    def __init__(self, radius: float, angle: float, observe: str, success_reward: float, step_cost: float, angle_weight: float) -> None:
        check_number(radius, "radius", 0.01, 10.0, "metres")
        check_number(angle, "angle", 0.01, 180.0, "degrees")
        check_choice(observe, "observe", OBSERVE)
        check_number(success_reward, "success_reward", 0.0, 1e6)
        check_number(step_cost, "step_cost", 0.0, 1e3)
        check_number(angle_weight, "angle_weight", 0.0, 100.0, "metres per radian")
        self.radius, self.angle, self._observe = radius, angle, observe
        self.success_reward, self.step_cost, self.angle_weight = success_reward, step_cost, angle_weight

    extra = 0  # numbers after the six in `goal`

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "observe": self._observe}

    def observation_space(self, image: spaces.Box) -> spaces.Space[Any]:
        if self._observe == "info":
            return image
        if self._observe == "channels":
            return spaces.Box(0, 255, (*image.shape[:2], 6), np.uint8)
        high = np.array([REACH, REACH, REACH, 1, 1, math.pi / 2] + [1] * self.extra, np.float32)
        goal_image = spaces.Box(0, 255, image.shape, np.uint8)
        return spaces.Dict({"image": image, "goal_image": goal_image, "goal": spaces.Box(-high, high, dtype=np.float32)})

    def observe(self, scene: Scene, state: State) -> Any:
        if self._observe == "info":
            return scene.observation
        if self._observe == "channels":
            return np.concatenate([scene.observation, state["goal_image"]], -1)
        goal = np.concatenate([relative_goal(scene.pose, state["goal_pose"]), self._also(state)]).astype(np.float32)
        return {"image": scene.observation, "goal_image": state["goal_image"].copy(), "goal": goal}

    def _also(self, state: State) -> np.ndarray:
        return np.zeros(0)

    def _gap(self, scene: Scene, state: State) -> tuple[float, float]:
        return pose_gap(scene.pose, state["goal_pose"])

    def _cost(self, distance: float, angle: float) -> float:
        """Metres still to go, turning counted as `angle_weight` metres per radian."""
        return distance + self.angle_weight * angle

    def _is_there(self, distance: float, angle: float) -> bool:
        return distance <= self.radius and angle <= math.radians(self.angle)

    def _shown(self, scene: Scene, state: State, success: bool) -> dict[str, Any]:
        distance, angle = self._gap(scene, state)
        return {
            "goal_image": state["goal_image"].copy(),
            "goal_pose": state["goal_pose"].copy(),
            "distance_to_goal": distance,
            "angle_to_goal": angle,
            "path_length": float(state["walked"]),
            "is_success": success,
        }

    def _walked(self, scene: Scene, state: State) -> float:
        """Metres walked in all."""
        steps = np.diff(np.concatenate([state["last"][None], scene.info["poses"][:, :3, 3]]), axis=0)
        return float(state["walked"] + np.linalg.norm(steps, axis=1).sum())


class ReachView(_Goal):
    """Get to where a picture was taken: within `radius` metres and `angle` degrees of its pose.

    The goal is found at the start of every episode by a scout, who walks a few clips ahead in the very world and comes back: the goal's
    picture is what the world showed there, and the world remembers it. On SpatiaTruth-v0 the same scout walks the true world.

    Reward of a step: metres come nearer to the goal (`angle_weight` metres for each radian turned towards its heading) - `step_cost`,
    + `success_reward` on arrival. Arrival ends the episode (termination).

    Info: `goal_image`, `goal_pose`, `distance_to_goal` (m), `angle_to_goal` (rad), `path_length` (m walked), `is_success`, `spl` (success
    weighted by path length: the straight distance at the start over the path walked, at most 1; 0 without success).

    Args:
        radius, angle: how near is there, metres and degrees.
        clips: how many clips the scout walks, at least 1.
        stride: metres forward per clip of the scout, at most.
        turn: degrees it turns per clip, at most.
        observe: how the goal is offered, "dict", "channels" or "info".
        success_reward, step_cost, angle_weight: see above.
    """

    name = "reach-view"

    def __init__(
        self,
        radius: float = 0.3,
        angle: float = 15.0,
        clips: int = 3,
        stride: float = 0.5,
        turn: float = 30.0,
        observe: str = "dict",
        success_reward: float = 2.5,
        step_cost: float = 0.01,
        angle_weight: float = 0.5,
    ) -> None:
        super().__init__(radius, angle, observe, success_reward, step_cost, angle_weight)
        check_number(clips, "clips", 1, 100, "a number of clips")
        check_number(stride, "stride", 0.0, 5.0, "metres")
        check_number(turn, "turn", 0.0, 90.0, "degrees")
        if max(stride, radius) == radius and turn <= angle:
            raise ValueError(f"a scout that goes {stride} m and turns {turn} degrees finds no goal outside {radius} m and {angle} degrees")
        self.clips, self.stride, self.turn = int(clips), stride, turn

    def start(self, scene: Scene, np_random: np.random.Generator) -> Scouting:
        from spatia_env.actions import level_twist

        home, seen = scene, scene
        side = float(np_random.choice([-1.0, 1.0]))  # it keeps turning to one side, or it would come back
        for clip in range(3 * self.clips):
            turn = side * math.radians(self.turn) * float(np_random.uniform(0.0, 1.0))
            forward = self.stride * float(np_random.uniform(0.5, 1.0))
            if clip >= self.clips:  # nothing far enough was found: look around instead
                turn, forward = side * math.radians(self.turn), 0.0
            seen = yield level_twist(seen.state.T_world_camera[-1], forward=forward, turn=turn)
            if clip + 1 >= self.clips and not self._is_there(*pose_gap(home.pose, seen.pose)):
                break
        return turned_back(seen.state, home.state), {
            "goal_image": seen.observation.copy(),
            "goal_pose": seen.pose,
            "last": home.pose[:3, 3],
            "walked": 0.0,
            "straight": pose_gap(home.pose, seen.pose)[0],
            "cost": self._cost(*pose_gap(home.pose, seen.pose)),
        }

    def metrics(self, scene: Scene, state: State) -> dict[str, Any]:
        return {**self._shown(scene, state, False), "spl": 0.0}

    def judge(self, scene: Scene, state: State) -> Verdict:
        gap = self._gap(scene, state)
        success, cost = self._is_there(*gap), self._cost(*gap)
        reward = state["cost"] - cost - self.step_cost + (self.success_reward if success else 0.0)
        after = {**state, "cost": cost, "walked": self._walked(scene, state), "last": scene.pose[:3, 3]}
        spl = after["straight"] / max(after["walked"], after["straight"], 1e-9) if success else 0.0
        return Verdict(reward, success, after, {**self._shown(scene, after, success), "spl": spl})


class ReturnHome(_Goal):
    """Go out at least `min_distance` metres, then come back to the first view.

    Reward on the way out: metres farther from home than ever before, up to `min_distance`. On the way back: metres come nearer to home
    (`angle_weight` metres for each radian turned towards the first view). Each step costs `step_cost`; being home again, within `radius`
    metres and `angle` degrees, gives `success_reward` and ends the episode (termination).

    Info: `goal_image` (the first view), `goal_pose`, `distance_to_goal` (m), `angle_to_goal` (rad), `path_length` (m), `went_out` (bool),
    `is_success`, `view_psnr` (dB, at most 99) and `view_ssim` of the view home against the first one; both 0.0 until then. They measure
    the world's memory, not the agent: the reward does not depend on them.

    Args:
        min_distance: metres to go out.
        radius, angle: how near is home, metres and degrees.
        observe: how home is offered, "dict", "channels" or "info"; in "dict" a seventh number of `goal` is 1 once out, else 0.
        success_reward, step_cost, angle_weight: see above.
    """

    name = "return-home"
    extra = 1

    def __init__(
        self,
        min_distance: float = 1.0,
        radius: float = 0.3,
        angle: float = 15.0,
        observe: str = "dict",
        success_reward: float = 2.5,
        step_cost: float = 0.01,
        angle_weight: float = 0.5,
    ) -> None:
        super().__init__(radius, angle, observe, success_reward, step_cost, angle_weight)
        check_number(min_distance, "min_distance", 0.01, 100.0, "metres")
        if min_distance <= radius:
            raise ValueError(f"min_distance is {min_distance} m, within the {radius} m that count as home; give more")
        self.min_distance = min_distance

    def begin(self, scene: Scene, np_random: np.random.Generator) -> State:
        home = scene.pose
        return {
            "goal_image": scene.observation.copy(),
            "goal_pose": home,
            "last": home[:3, 3],
            "walked": 0.0,
            "farthest": 0.0,
            "cost": 0.0,
        }

    def _also(self, state: State) -> np.ndarray:
        return np.array([float(state["farthest"] >= self.min_distance)])

    def metrics(self, scene: Scene, state: State) -> dict[str, Any]:
        return {**self._shown(scene, state, False), "went_out": False, "view_psnr": 0.0, "view_ssim": 0.0}

    def judge(self, scene: Scene, state: State) -> Verdict:
        distance, angle = self._gap(scene, state)
        was_out = state["farthest"] >= self.min_distance
        farthest, cost = max(state["farthest"], distance), self._cost(distance, angle)
        out = farthest >= self.min_distance
        success = was_out and self._is_there(distance, angle)
        gained = state["cost"] - cost if was_out else min(farthest, self.min_distance) - state["farthest"]
        reward = gained - self.step_cost + (self.success_reward if success else 0.0)
        after = {**state, "farthest": farthest, "cost": cost, "walked": self._walked(scene, state), "last": scene.pose[:3, 3]}
        alike = {"view_psnr": 0.0, "view_ssim": 0.0}
        if success:
            alike = view_similarity(scene.observation, state["goal_image"])
        return Verdict(reward, success, after, {**self._shown(scene, after, success), "went_out": out, **alike})


def pose_gap(T_world_a: np.ndarray, T_world_b: np.ndarray) -> tuple[float, float]:
    """Metres and radians (of the rotation, 0..pi) between two camera poses (4, 4)."""
    cosine = (float(np.trace(T_world_a[:3, :3].T @ T_world_b[:3, :3])) - 1) / 2
    return float(np.linalg.norm(T_world_a[:3, 3] - T_world_b[:3, 3])), math.acos(max(-1.0, min(1.0, cosine)))


def relative_goal(T_world_camera: np.ndarray, T_world_goal: np.ndarray) -> np.ndarray:
    """(6,) where a goal is, seen from a camera: right, down, forward in metres (at most `REACH` away), sine and cosine of the goal's
    heading against the camera's (positive to the right), and how far it looks up against it (rad)."""
    T_camera_goal = np.linalg.inv(T_world_camera) @ T_world_goal
    place, ahead = T_camera_goal[:3, 3], T_camera_goal[:3, 2]
    place = place * min(1.0, REACH / max(float(np.linalg.norm(place)), 1e-9))
    heading = math.atan2(ahead[0], ahead[2])
    up = math.asin(max(-1.0, min(1.0, -float(ahead[1]))))
    return np.array([*place, math.sin(heading), math.cos(heading), up])


def view_similarity(frame: np.ndarray, first: np.ndarray) -> dict[str, float]:
    """PSNR (dB, at most `BEST_PSNR`) and SSIM of two frames (H, W, 3)."""
    return {"view_psnr": min(psnr(frame, first), BEST_PSNR), "view_ssim": ssim(frame, first)}
