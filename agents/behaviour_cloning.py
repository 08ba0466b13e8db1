"""Behaviour cloning: learn from recorded episodes to do as was done there.

    spatia rollout --agent agents/frontier_explorer.py:FrontierExplorer --env SpatiaNav-v0 --episodes 40 --out outputs/explored-v0
    python agents/behaviour_cloning.py train --dataset outputs/explored-v0 --out runs/cloned
    python agents/behaviour_cloning.py act --policy runs/cloned/policy.safetensors --env SpatiaNav-v0 --steps 20
    spatia rollout --agent agents/behaviour_cloning.py:ClonedPolicy --agent-option policy=runs/cloned/policy.safetensors \
        --env SpatiaNav-v0 --episodes 20 --out outputs/cloned-v0

The dataset is a Minari one, by folder or by the id that `minari list local` shows. All pictures of an observation (a frame, or frame and
goal) are scaled to 32 x 32 and stacked, all its vectors joined, and a small network is fitted to the recorded actions: which of the
discrete motions, or which camera motion and which of the texts that occur. A tenth of the episodes is held out; the error there, and that
of always doing the same, are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import spatia_env  # noqa: F401  (registers the envs)

PIXELS = 32
MOST_TEXTS = 64  # different ones; the rarer are left out


# -- observations and actions as tensors ---------------------------------------------------------------


def look(observation: Any) -> tuple[np.ndarray, np.ndarray]:
    """One observation -> its pictures (C, 32, 32) uint8 and its numbers (N,) float32."""
    parts = [observation[key] for key in sorted(observation)] if isinstance(observation, dict) else [observation]
    pictures, numbers = [], [np.zeros(0, np.float32)]
    for part in map(np.asarray, parts):
        if part.ndim == 3 and part.dtype == np.uint8:
            for first in range(0, part.shape[-1], 3):
                scaled = Image.fromarray(part[..., first : first + 3]).resize((PIXELS, PIXELS), Image.Resampling.BOX)
                pictures.append(np.asarray(scaled).transpose(2, 0, 1))
        elif part.ndim <= 1 and part.dtype.kind in "fiub":
            numbers.append(part.astype(np.float32).reshape(-1))
    if not pictures:
        raise ValueError("the observation has no picture, (H, W, 3) uint8, in it; behaviour cloning needs one")
    return np.concatenate(pictures), np.concatenate(numbers)


def rows(observations: Any, count: int) -> list[Any]:
    """A Minari episode's observations, one by one."""
    if isinstance(observations, dict):
        columns = {key: rows(value, count) for key, value in observations.items()}
        return [{key: column[k] for key, column in columns.items()} for k in range(count)]
    return [observations[k] for k in range(count)]


class Cloner(nn.Module):
    """pictures (B, C, 32, 32) in 0..1 and numbers (B, N) -> motion (B, M) (scores, or camera in -1..1) and scores of texts (B, K)."""

    def __init__(self, channels: int, numbers: int, motions: int, discrete: bool, texts: int) -> None:
        super().__init__()
        self.discrete = discrete
        self.eye = nn.Sequential(
            nn.Conv2d(channels, 16, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.think = nn.Sequential(nn.Linear(32 * 16 + numbers, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 64), nn.ReLU())
        self.motion, self.text = nn.Linear(64, motions), nn.Linear(64, texts)

    def forward(self, pictures: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        thought = self.think(torch.cat([self.eye(pictures), numbers], 1))
        motion = self.motion(thought)
        return motion if self.discrete else torch.tanh(motion), self.text(thought)

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        pictures, numbers, motion, text = batch
        said, words = self(pictures.float() / 255, numbers)
        wrong = F.cross_entropy(said, motion[:, 0].long()) if self.discrete else F.mse_loss(said, motion)
        return wrong + (0.1 * F.cross_entropy(words, text) if words.shape[1] > 1 else 0.0)


def network_for(known: dict[str, Any]) -> Cloner:
    """The network that fits what is known of a dataset."""
    return Cloner(known["channels"], known["numbers"], known["motions"], known["discrete"], len(known["texts"]))


class ClonedPolicy:
    """A trained policy as an agent: `policy` is the file that training wrote. Discrete motions are drawn unless `greedy`."""

    def __init__(self, env: gym.Env, seed: int = 0, policy: str = "", greedy: bool = False) -> None:
        try:
            with safe_open(str(policy), framework="pt") as file:
                self.known = json.loads((file.metadata() or {})["spatia_cloned"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        except Exception as error:
            raise ValueError(
                f"{str(policy)!r} is no policy of this agent ({error}); give the policy.safetensors that `train` wrote"
            ) from error
        if self.known["discrete"] != isinstance(env.action_space, gym.spaces.Discrete):
            kind = "discrete" if self.known["discrete"] else "continuous"
            raise ValueError(f"the policy does {kind} motions, the action space is {env.action_space}; use the env it was recorded in")
        self.network = network_for(self.known).eval()
        self.network.load_state_dict(tensors)
        self.rng, self.greedy = np.random.default_rng(seed), greedy

    def reset(self, observation: Any, info: dict[str, Any]) -> None:
        """Nothing is remembered from step to step."""

    @torch.no_grad()
    def act(self, observation: Any, info: dict[str, Any]) -> Any:
        pictures, numbers = look(observation)
        if (len(pictures), len(numbers)) != (self.known["channels"], self.known["numbers"]):
            raise ValueError(
                "the observation has other pictures or numbers than the recorded ones; use the env and task that were recorded"
            )
        motion, text = self.network(torch.from_numpy(pictures)[None] / 255, torch.from_numpy(numbers)[None])
        if self.known["discrete"]:
            chances = motion[0].double().softmax(0).numpy()
            return int(chances.argmax() if self.greedy else self.rng.choice(len(chances), p=chances / chances.sum()))
        return {"camera": motion[0].numpy().astype(np.float32), "text": self.known["texts"][int(text[0].argmax())]}


# -- training ------------------------------------------------------------------------------------------


def open_dataset(given: str) -> Any:
    """A Minari dataset by folder or id."""
    try:
        import minari
    except ImportError as error:
        raise ImportError("behaviour cloning reads Minari datasets: pip install 'minari[hdf5]'") from error
    folder = Path(given)
    try:
        return minari.MinariDataset(folder / "data") if (folder / "data" / "metadata.json").exists() else minari.load_dataset(given)
    except Exception as error:
        raise ValueError(
            f"{given!r} cannot be opened as a Minari dataset ({error}); give a folder that `spatia rollout` wrote, or an id"
        ) from error


def read(dataset: Any) -> tuple[list[list[torch.Tensor]], dict[str, Any]]:
    """Episodes as tensors (pictures, numbers, motion, text), and what the network must know."""
    discrete = isinstance(dataset.action_space, gym.spaces.Discrete)
    if not discrete and not (isinstance(dataset.action_space, gym.spaces.Dict) and set(dataset.action_space) == {"camera", "text"}):
        raise ValueError(f"the recorded actions are {dataset.action_space}; this agent learns those of Spatia-v0 and SpatiaNav-v0")
    episodes, texts = [], []
    for episode in dataset.iterate_episodes():
        count = len(episode.rewards)
        if not count:
            continue
        seen = [look(observation) for observation in rows(episode.observations, count)]
        motion = np.asarray(episode.actions if discrete else episode.actions["camera"], np.float32).reshape(count, -1)
        texts.append([""] * count if discrete else [str(text) for text in episode.actions["text"]])
        episodes.append([np.stack([s[0] for s in seen]), np.stack([s[1] for s in seen]), motion])
    if len(episodes) < 2:
        raise ValueError(f"the dataset has {len(episodes)} episodes with steps; record at least 2, one of them to hold out")
    said, counts = np.unique([text for each in texts for text in each], return_counts=True)
    kept = [str(text) for text in said[np.argsort(-counts, kind="stable")][:MOST_TEXTS]]
    tensors = [
        [torch.from_numpy(array) for array in arrays] + [torch.tensor([kept.index(text) if text in kept else 0 for text in each])]
        for arrays, each in zip(episodes, texts, strict=True)
    ]
    motions = int(dataset.action_space.n) if discrete else 6  # type: ignore[attr-defined]
    known = {"channels": tensors[0][0].shape[1], "numbers": tensors[0][1].shape[1], "motions": motions, "discrete": discrete, "texts": kept}
    return tensors, known


def train(given: str, out: Path, seed: int = 0, epochs: int = 30, batch: int = 64) -> dict[str, Any]:
    """Fit a network to the dataset; the one with the least error on the held-out episodes is kept. Returns the figures."""
    if epochs < 1 or batch < 1:
        raise ValueError(f"epochs is {epochs} and batch {batch}; give at least 1 of each")
    episodes, known = read(open_dataset(given))
    torch.manual_seed(seed)
    order = torch.randperm(len(episodes)).tolist()
    held = max(1, len(episodes) // 10)
    test, fit = (
        [torch.cat(parts) for parts in zip(*(episodes[k] for k in chosen), strict=True)] for chosen in (order[:held], order[held:])
    )
    network = network_for(known)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    out.mkdir(parents=True, exist_ok=True)
    best = float("inf")
    figures: dict[str, Any] = {"steps": len(fit[0]), "held_out_steps": len(test[0]), "epochs": epochs}
    for epoch in range(epochs):
        network.train()
        for chosen in torch.randperm(len(fit[0])).split(batch):
            optimizer.zero_grad()
            network.loss([part[chosen] for part in fit]).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            loss = float(network.loss(test))
        if loss < best:
            best = loss
            figures |= {"best_epoch": epoch, **errors(network, fit, test)}
            save_file(network.state_dict(), str(out / "policy.safetensors.new"), metadata={"spatia_cloned": json.dumps(known)})
            os.replace(out / "policy.safetensors.new", out / "policy.safetensors")
        print(f"cloning: epoch {epoch + 1}/{epochs}, held-out loss {loss:.4f}", file=sys.stderr, flush=True)
    (out / "training.json").write_text(json.dumps({"dataset": given, "seed": seed, **figures}, indent=1) + "\n")
    return figures


@torch.no_grad()
def errors(network: Cloner, fit: list[torch.Tensor], test: list[torch.Tensor]) -> dict[str, float]:
    """On the held-out steps, of the policy and of always doing what was done most or on average: wrong motions, or camera error."""
    said, _ = network(test[0].float() / 255, test[1])
    if network.discrete:
        usual = fit[2][:, 0].mode().values
        wrong, dull = (said.argmax(1) != test[2][:, 0]).float().mean(), (test[2][:, 0] != usual).float().mean()
        return {"wrong": round(float(wrong), 4), "wrong_always_the_same": round(float(dull), 4)}
    dull = (test[2] - fit[2].mean(0)).abs().mean()
    return {"camera_error": round(float((said - test[2]).abs().mean()), 4), "camera_error_always_the_same": round(float(dull), 4)}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    learn = commands.add_parser("train", help="learn from a dataset")
    learn.add_argument("--dataset", required=True, help="folder or id of a Minari dataset")
    learn.add_argument("--out", type=Path, required=True, help="folder for policy.safetensors and training.json")
    learn.add_argument("--epochs", type=int, default=30)
    learn.add_argument("--batch", type=int, default=64)
    do = commands.add_parser("act", help="see what a policy does")
    do.add_argument("--policy", required=True, help="a policy.safetensors")
    do.add_argument("--env", default="SpatiaNav-v0", choices=("Spatia-v0", "SpatiaNav-v0", "SpatiaTruth-v0"))
    do.add_argument("--env-args", default="{}", metavar="JSON", help='arguments of gym.make, such as \'{"task": "explore"}\'')
    do.add_argument("--steps", type=int, default=20)
    do.add_argument("--greedy", action="store_true", help="the likeliest motion instead of a drawn one")
    for command in (learn, do):
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def act(args: argparse.Namespace) -> dict[str, Any]:
    try:
        env = gym.make(args.env, **json.loads(args.env_args))
    except (TypeError, ValueError) as error:
        raise ValueError(f"--env-args is {args.env_args!r} ({error}); give arguments of gym.make as a JSON object") from error
    agent = ClonedPolicy(env, args.seed, args.policy, args.greedy)
    observation, info = env.reset(seed=args.seed)
    agent.reset(observation, info)
    total, steps, way = 0.0, 0, 0.0
    while steps < args.steps:
        steps += 1
        before = info["poses"][-1][:3, 3]
        observation, reward, terminated, truncated, info = env.step(agent.act(observation, info))
        total, way = total + float(reward), way + float(np.linalg.norm(info["poses"][-1][:3, 3] - before))
        if terminated or truncated:
            break
    env.close()
    return {"env": args.env, "steps": steps, "return": round(total, 4), "walked_m": round(way, 3), "memory_points": info["memory_points"]}


def main() -> int:
    args = parse_arguments()
    try:
        found = train(args.dataset, args.out, args.seed, args.epochs, args.batch) if args.command == "train" else act(args)
    except (ValueError, ImportError) as error:
        print(f"behaviour_cloning: error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found) if args.json else ", ".join(f"{key} {value}" for key, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
