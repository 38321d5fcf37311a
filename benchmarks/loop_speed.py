"""The whole training loop with its reward: ours against the straightforward one, in frames a second.

    python benchmarks/loop_speed.py                    # prints a table; about 3 minutes on 2 cores
    python benchmarks/loop_speed.py --out docs/img     # also loop_speed.json
    python benchmarks/loop_speed.py --steps 100        # rounds of whole episodes; about 10 minutes

A round is an episode of ``--steps`` agent steps in each environment, an update every second step, and the reward of
the episode when it ends. Both sides play such rounds and take turns; the best of the turns counts, so that other
programs on the machine disturb all alike. Replays hold the same episodes before. Frames are simulator steps, action
repeats counted; a part's frames/s are what the loop would reach if it consisted of this part alone. Our environments
simulate while the agent learns, and only the time that is spent waiting for them is theirs.

The straightforward side is one Meta-World environment at its default rendering, DrQ-v2 in float32 with networks of the
published sizes (``SlowDrQV2``), a replay of one .npz file an episode that is read for every item, and the published
reward at the published size (``slow_reference.py``), all in a process of its own. It is also computed for episodes
that are all decoded in memory, as published agents keep them while it suffices. Ours is what ``dr train-agent``
builds, with as many environments as cores. A row is compared with the straightforward side at the same batch size, and
with exploration where the row has it; its name tells where its networks are smaller. All weights are random: only the
time counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agent_speed import Batch, SlowDrQV2
from environment_speed import default_rendering
from replay_speed import make_episode
from reward_speed import cpu_name, default_model, paper_model
from rich.console import Console
from rich.table import Table
from slow_reference import SlowDenoiser, SlowDiffusion, slow_reward
from torch import Tensor

from dr_core.agent.actor import ActorConfig
from dr_core.agent.drqv2 import DrQV2
from dr_core.agent.loop import PRESETS, SPARSE, VIDEO, AgentStage, LoopConfig
from dr_core.agent.replay import Replay
from dr_core.codec.train import to_images
from dr_core.codec.vqgan import VQGAN
from dr_core.diffusion.schedule import ScheduleConfig, mask_and_uniform
from dr_core.diffusion.train import history_indices
from dr_core.rewards.names import RewardName
from dr_core.rewards.online import video_reward
from dr_core.rewards.rnd import RandomNetworkDistillation

TARGET = 3.0
PARTS = ("environment", "acting", "reward", "exploration", "sampling", "update", "saving")
IN_MEMORY = "sampling in memory"
EPISODES = 20
"""That the replays hold before."""
ACTIONS = 4  # of Meta-World
UPDATE_EVERY = 2


class Watch:
    """Seconds spent in each part."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Count the block as this part."""
        started = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - started

    def wrap(self, owner: object, name: str, part: str) -> None:
        """Count the calls of a method, or of an attribute that can be called, as this part."""
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **more: Any) -> Any:
            with self.on(part):
                return function(*args, **more)

        setattr(owner, name, timed)


# ---- the straightforward way ----


class FileReplay:
    """An .npz file an episode; transitions over n steps are put together one by one."""

    def __init__(self, folder: Path, n_step: int, discount: float) -> None:
        self.files: list[Path] = []
        self.folder, self.n_step, self.discount = folder, n_step, discount
        self.decoded: dict[Path, dict[str, Any]] = {}

    def add(self, **episode: Any) -> None:
        self.files.append(self.folder / f"{len(self.files)}.npz")
        np.savez_compressed(self.files[-1], **episode)

    def read(self, file: Path, *, keep: bool) -> dict[str, Any]:
        if keep and file in self.decoded:
            return self.decoded[file]
        with np.load(file) as archive:
            episode = dict(archive)
        if keep:
            self.decoded[file] = episode
        return episode

    def sample(self, batch: int, rng: np.random.Generator, *, keep: bool) -> tuple[Batch, Tensor]:
        items = []
        for _ in range(batch):
            episode = self.read(self.files[rng.integers(len(self.files))], keep=keep)
            t = int(rng.integers(len(episode["actions"])))
            total, k = 0.0, 0
            while k < self.n_step and t + k < len(episode["actions"]):
                total += self.discount**k * (0.05 * episode["video"][t + k] + episode["success"][t + k])
                k += 1
            frames = [episode["frames"][i].transpose(2, 0, 1) for i in (t, t + k)]
            items.append((frames[0], episode["actions"][t], np.float32(total), np.float32(self.discount**k), frames[1]))
        frames, actions, rewards, discounts, after = (torch.from_numpy(np.stack(c)) for c in zip(*items, strict=True))
        return Batch(frames, actions, discounts, after), rewards


class SlowLoop:
    """One environment, one agent, one replay, one reward, each after the other."""

    def __init__(self, task: str, threads: int, action_repeat: int, folder: Path) -> None:
        os.environ["LP_NUM_THREADS"] = "0"
        torch.set_num_threads(threads)
        config = PRESETS["paper"].agent
        self.environment, self.action_repeat = default_rendering(task), action_repeat
        self.agent = SlowDrQV2(ActorConfig(ACTIONS, task, 1.0), config)
        self.novelty = RandomNetworkDistillation()
        self.replay = FileReplay(folder, config.n_step, config.discount)
        rng = np.random.default_rng(0)
        for _ in range(EPISODES):
            self.replay.add(**make_episode(rng))
        networks = paper_model().networks
        assert isinstance(networks.codec, VQGAN)
        self.codec = VQGAN(replace(networks.codec.config, channels_last=False)).eval()
        self.codec.load_state_dict(networks.codec.state_dict())
        self.process = SlowDiffusion(mask_and_uniform(ScheduleConfig(), networks.codec.num_codes))
        self.denoiser = SlowDenoiser(networks.video.to_published(), networks.video.config.heads)

    @torch.no_grad()
    def act(self, frame: np.ndarray) -> np.ndarray:
        features = self.agent.encoder(torch.from_numpy(frame.transpose(2, 0, 1)[None]) / 255.0 - 0.5)
        return self.agent.action(features, torch.randn(1, ACTIONS), 1.0)[0].numpy()

    @torch.no_grad()
    def reward(self, frames: np.ndarray) -> np.ndarray:
        tokens = self.codec.encode(to_images(frames, torch.device("cpu"))).view(len(frames), -1)
        indices = history_indices(len(frames), 2, 1, observed=False)
        histories = tokens[torch.from_numpy(indices)].view(len(frames), -1)
        shape = (1, tokens.shape[1], self.process.num_codes + 1)
        rewards, _ = slow_reward(self.process, self.denoiser, histories, lambda step: torch.rand(shape))
        return rewards.numpy()[1:]

    def render(self) -> np.ndarray:
        return np.ascontiguousarray(self.environment.render()[::-1, ::-1])  # the camera is upside down

    def round(self, steps: int, batches: tuple[int, ...]) -> dict[int, dict[str, float]]:
        """Seconds of each part, for each size of a batch."""
        shared, watches = Watch(), {batch: Watch() for batch in batches}
        rng = np.random.default_rng(0)
        with shared.on("environment"):
            self.environment.reset()
            frames, actions, success = [self.render()], [], []
        for t in range(steps):
            with shared.on("acting"):
                actions.append(self.act(frames[-1]))
            with shared.on("environment"):
                infos = [self.environment.step(actions[-1])[4] for _ in range(self.action_repeat)]
                frames.append(self.render())
            success.append(sum(info["success"] for info in infos))
            if t % UPDATE_EVERY == 0:
                for batch, watch in watches.items():
                    self.update(batch, watch, rng)
        assert np.std(frames) > 10, "the pictures are empty"
        with shared.on("reward"):
            video = self.reward(np.stack(frames))
        with shared.on("saving"):
            columns = {"actions": np.stack(actions), "video": video, "success": np.array(success, np.float32)}
            self.replay.add(frames=np.stack(frames), **columns)
        return {batch: dict(shared.seconds + watch.seconds) for batch, watch in watches.items()}

    def update(self, batch: int, watch: Watch, rng: np.random.Generator) -> None:
        # First all files are decoded, which is not counted.
        for file in self.replay.files:
            self.replay.read(file, keep=True)
        with watch.on(IN_MEMORY):
            self.replay.sample(batch, rng, keep=True)
        with watch.on("sampling"):
            transitions, rewards = self.replay.sample(batch, rng, keep=False)
        with watch.on("exploration"):
            newest = transitions.next_frames.permute(0, 2, 3, 1).numpy()
            rewards = rewards + 0.95 * torch.from_numpy(self.novelty.score(newest))
            self.novelty.update(newest)
        with watch.on("update"):
            self.agent.update(transitions, rewards, 1.0)


_slow: list[SlowLoop] = []  # of the child process


def build_slow(task: str, threads: int, action_repeat: int, folder: Path) -> None:
    _slow.append(SlowLoop(task, threads, action_repeat, folder))


def slow_round(steps: int, batches: tuple[int, ...]) -> dict[int, dict[str, float]]:
    return _slow[0].round(steps, batches)


# ---- ours ----


class OurLoop:
    """A stage as ``dr train-agent`` builds it, past its first random steps."""

    def __init__(
        self, config: LoopConfig, reward: RewardName, model: Path, environments: Any, out: Path, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        agent_config = replace(config.agent, seed_steps=0, explore_steps=0)
        config = replace(config, frames=10**9, eval_every_frames=10**9, replay_capacity=10_000, agent=agent_config)
        # Not centred: the replay is filled without the stage, which would take the mean of its first episodes.
        config = replace(config, reward=replace(config.reward, name=reward, centred=False))
        self.config, self.environments, self.watch, self._rounds = config, environments, Watch(), itertools.count()
        actor = ActorConfig(environments.action_size, environments.task, environments.rate_hz, network=config.network)
        agent = DrQV2(actor, config.agent, config.seed)
        self.replay = Replay(
            out / "replay",
            capacity=config.replay_capacity,
            frame_shape=environments.frame_shape,
            action_size=environments.action_size,
            n_step=config.agent.n_step,
            discount=config.agent.discount,
            reward_names=(VIDEO, SPARSE),
        )
        rng = np.random.default_rng(0)
        for _ in range(EPISODES):
            one = make_episode(rng)
            rewards = {VIDEO: one["video"], SPARSE: one["success"]}
            self.replay.add(one["frames"], one["actions"], rewards, terminal=False)
        score = video_reward(reward, environments.task, model=model)
        self.stage = AgentStage(config, agent, environments, self.replay, score, None, out)
        self.watch.wrap(self.stage, "_video_reward", "reward")
        self.watch.wrap(self.stage, "_reward", "exploration")
        self.watch.wrap(agent, "act", "acting")
        self.watch.wrap(agent, "update", "update")
        self.watch.wrap(self.replay, "sample", "sampling")
        self.watch.wrap(self.replay, "add", "saving")

    def round(self, environment_watch: Watch) -> dict[str, float]:
        """Seconds of each part, and the total."""
        self.watch.seconds.clear()
        environment_watch.seconds.clear()
        with self.watch.on("total"):
            self.stage.step(next(self._rounds))
        return dict(self.watch.seconds + environment_watch.seconds)


# ---- the comparison ----


@dataclass(frozen=True)
class Side:
    """Seconds of a round of so many frames in its best turn."""

    frames: int
    seconds: dict[str, float]

    def rate(self, part: str) -> float | None:
        """Frames a second of a part, or of all."""
        seconds = self.seconds.get(part, 0.0)
        return self.frames / seconds if seconds > 0.0 else None


def slow_side(frames: int, seconds: dict[str, float], *, explores: bool, in_memory: bool = False) -> Side:
    """The straightforward loop of the parts that are asked for."""
    parts = {part: seconds[part] for part in PARTS if explores or part != "exploration"}
    if in_memory:
        parts["sampling"] = seconds[IN_MEMORY]
    return Side(frames, parts | {"total": sum(parts.values())})


def row(name: str, side: Side, slow: Side | None = None, cached: Side | None = None) -> dict[str, Any]:
    """A line of the table: frames/s, and the ratio to the straightforward side, its replay on disk or in memory."""
    ratios = {"ratio": slow, "ratio_in_memory": cached}
    found = {key: None if other is None else side.rate("total") / other.rate("total") for key, other in ratios.items()}
    met = None if slow is None else found["ratio"] >= TARGET
    rates = {part: side.rate(part) for part in (*PARTS, "total")}
    return {"name": name, "frames_per_s": rates, "seconds": side.seconds, "frames": side.frames, **found, "met": met}


def compare(options: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    """All rows."""
    from dr_sim.vector import VectorEnvironment

    default = options.model or root / "default"
    if not options.model:
        default_model().save(default)
    paper_model().save(root / "paper")
    published = replace(PRESETS["paper"], agent=replace(PRESETS["paper"].agent, precision="bfloat16"))
    small = PRESETS["default"].agent.batch_size
    settings: dict[str, tuple[LoopConfig, RewardName, Path]] = {
        "published sizes, published reward": (published, "diffusion_reward", root / "paper"),
        "published sizes, default reward": (published, "default", default),
        f"preset default: smaller agent, batch {small}": (PRESETS["default"], "default", default),
    }
    batches = tuple(sorted({config.agent.batch_size for config, _, _ in settings.values()}))
    assert all(config.agent.update_every == UPDATE_EVERY for config, _, _ in settings.values())
    slow: dict[int, dict[str, float]] = {}
    ours: dict[str, dict[str, float]] = {}
    with VectorEnvironment(options.task, options.envs) as environments:
        (root / "files").mkdir()
        words = (options.task, options.threads, environments.action_repeat, root / "files")
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn, initializer=build_slow, initargs=words) as pool:
            environments.episode_steps = options.steps
            watch = Watch()
            loops = {}
            for i, (name, (config, reward, model)) in enumerate(settings.items()):
                (root / str(i)).mkdir()
                loops[name] = OurLoop(config, reward, model, environments, root / str(i), options.threads)
            for name in ("reset", "send", "receive"):
                watch.wrap(environments, name, "environment")
            for _ in range(options.turns):
                for batch, seconds in pool.submit(slow_round, options.steps, batches).result().items():
                    seconds["total"] = slow_side(1, seconds, explores=True).seconds["total"]
                    slow[batch] = min(slow.get(batch, seconds), seconds, key=lambda each: each["total"])
                for name, loop in loops.items():
                    seconds = loop.round(watch)
                    ours[name] = min(ours.get(name, seconds), seconds, key=lambda each: each["total"])
            for loop in loops.values():
                loop.replay.close()
        frames = options.steps * environments.action_repeat
        rows = []
        for batch in batches:
            for explores in sorted(
                {c.reward.exploration > 0 for c, _, _ in settings.values() if c.agent.batch_size == batch}
            ):
                exploring = "with" if explores else "without"
                name = f"straightforward, batch {batch}, {exploring} exploration"
                rows.append(row(name, slow_side(frames, slow[batch], explores=explores)))
        for name, (config, _, _) in settings.items():
            other = {"frames": frames, "seconds": slow[config.agent.batch_size]}
            explores = config.reward.exploration > 0.0
            side = Side(frames * environments.num, ours[name])
            by_file = slow_side(**other, explores=explores)
            rows.append(row(name, side, by_file, slow_side(**other, explores=explores, in_memory=True)))
    return rows


def show(rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(title=", ".join(f"{key} {value}" for key, value in facts.items()))
    for title in ("frames/s", *PARTS, "total", "ratio", "in memory"):
        table.add_column(title, justify="left" if title == "frames/s" else "right")
    for line in rows:
        rates = [f"{rate:.4g}" if rate else "" for rate in line["frames_per_s"].values()]
        ratios = ["" if line[key] is None else f"×{line[key]:.2f}" for key in ("ratio", "ratio_in_memory")]
        table.add_row(line["name"], *rates, *ratios)
    Console(width=180).print(table)
    for line in rows:
        if line["met"] is not None:
            print(f"{line['name']}: at least ×{TARGET:g}: {'yes' if line['met'] else 'no'}")


def main() -> None:
    from dr_sim.rendering import select_backend
    from dr_sim.workers import usable_cores

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--task", default="door-close", help="Meta-World task without version")
    parser.add_argument("--model", type=Path, help="reward model instead of an untrained one of the default size")
    parser.add_argument("--steps", type=int, default=20, help="agent steps of a round's episodes, 100 at most")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--envs", type=int, default=usable_cores(), help="environments of ours")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of torch")
    parser.add_argument("--out", type=Path, help="directory for loop_speed.json")
    options = parser.parse_args()
    os.environ["LP_NUM_THREADS"] = "0"  # one thread each in software rendering, as in the workers
    backend = select_backend()
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(options, Path(folder))
    facts = {"CPU": cpu_name(), "threads": options.threads, "torch": torch.__version__, "MUJOCO_GL": backend}
    facts |= {"task": options.task, "steps": options.steps, "environments": options.envs}
    show(rows, facts)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        result = {"machine": facts, "target": TARGET, "rows": rows}
        (options.out / "loop_speed.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
