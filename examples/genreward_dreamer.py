"""GenReward with the base agent of its paper: DreamerV3 of sheeprl learns a Meta-World task from a goal video.

sheeprl is no dependency of this package, and asks for an older Pillow: give both an environment of their own. Below
--out: episodes.jsonl with the return of each episode and its terms, the replay of F and B, the goal, and what sheeprl
logs, TensorBoard curves and checkpoints. The default sizes suit a processor: they show that it runs, and are far from
what solves a task.

    pip install sheeprl==0.8.4
    python examples/genreward_dreamer.py --model models/door-close/reward --out runs/dreamer --steps 3000
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium

from dr_core.agent.loop import PRESETS
from dr_core.errors import UserError
from dr_core.files import run_directory
from dr_sim.agent_commands import keep_goal
from dr_sim.reward_env import make_reward_env

ENVIRONMENT = "GenReward-v0"
SMALL = [
    "exp=dreamer_v3",
    "algo=dreamer_v3_XS",
    "algo.cnn_keys.encoder=[rgb]",
    "algo.mlp_keys.encoder=[]",
    "algo.per_rank_batch_size=4",
    "algo.per_rank_sequence_length=16",
    "algo.replay_ratio=0.25",
    "algo.learning_starts=300",
    "algo.world_model.encoder.cnn_channels_multiplier=8",
    "algo.run_test=False",
    "buffer.size=100000",
    "buffer.checkpoint=False",
    "checkpoint.every=10000",
    "metric.log_every=100",
    # One environment in this process: there is one F and one B.
    "env=gym",
    f"env.id={ENVIRONMENT}",
    "~env.wrapper.render_mode",
    "env.num_envs=1",
    "env.sync_env=True",
    "env.capture_video=False",
]
"""What is asked of sheeprl: the XS network with fewer channels, short sequences, an update for every fourth step."""


class Told(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Prints a line for each episode that is over, and writes it to a file."""

    def __init__(self, env: gymnasium.Env[Any, Any], file: Path) -> None:
        super().__init__(env)
        self._file, self._episode = file, 0

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**options)
        self._sums: dict[str, float] = {"return": 0.0}
        self._success, self._fb = False, info
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        self._sums["return"] += float(reward)
        for name in (name for name in info if name.startswith("term_")):
            self._sums[name] = self._sums.get(name, 0.0) + info[name]
        self._success = self._success or info["success"]
        if truncated:
            line = {"episode": self._episode, "success": self._success, **self._sums, **self._fb}
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
            words = [
                f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in line.items()
            ]
            print("  ".join(words), flush=True)
            self._episode += 1
        return observation, reward, terminated, truncated, info


def main() -> int:
    """Hand the environment to sheeprl, and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="door-close")
    parser.add_argument("--model", type=Path, required=True, help="directory of a reward model")
    parser.add_argument("--goal", type=Path, help="goal video; left out: what the model imagines")
    parser.add_argument("--reward", choices=["genreward", "genreward_diffusion"], default="genreward")
    parser.add_argument("--out", type=Path, required=True, help="directory to create")
    parser.add_argument("--steps", type=int, default=3000, help="of the agent; an episode has 100")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--set", nargs="*", default=[], help="more of sheeprl's settings, as algo.replay_ratio=1")
    asked = parser.parse_args()
    if importlib.util.find_spec("sheeprl") is None:
        print("sheeprl is not installed: pip install sheeprl==0.8.4, in an environment of its own", file=sys.stderr)
        return 2
    from sheeprl.cli import run

    config = replace(PRESETS["default"].reward, name=asked.reward)
    log = (asked.out / "sheeprl").resolve()
    own = [f"algo.total_steps={asked.steps}", f"seed={asked.seed}", f"fabric.accelerator={asked.device}"]
    own += [f"log_root={log}", "root_dir=.", "run_name=run", f"hydra.run.dir={log}/hydra"]
    try:
        with run_directory(asked.out, resume=False):
            env = make_reward_env(
                asked.task, asked.model, asked.out / "replay", config,
                goal=asked.goal, seed=asked.seed, device=asked.device,
            )  # fmt: skip
            keep_goal(env.goal, asked.out / "goal", env.rate_hz)
            told = Told(env, asked.out / "episodes.jsonl")
            gymnasium.register(ENVIRONMENT, lambda **_: told, disable_env_checker=True)
            sys.argv = ["sheeprl", *SMALL, *own, *asked.set]  # where Hydra reads its settings
            run()  # closes the environment
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
