"""What an update of the agent costs: ours against DrQ-v2 written the obvious way, batch 256, 64×64×3.

    python benchmarks/agent_speed.py                   # prints a table; about a minute on 2 cores
    python benchmarks/agent_speed.py --out docs/img    # also agent_speed.json

All sides have the same weights and transitions; they take turns, and the best of the turns counts, so that other
programs on the machine disturb all alike. The slow side is ``SlowDrQV2`` below, in float32.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from dr_core.agent.actor import ActorConfig
from dr_core.agent.drqv2 import AgentConfig, DrQV2

TARGET = 2.0


@dataclass(frozen=True)
class Batch:
    """Transitions in memory."""

    frames: Tensor
    actions: Tensor
    discounts: Tensor
    next_frames: Tensor


# ---- the obvious way ----


def slow_shift(pictures: Tensor, shifts: Tensor, pad: int) -> Tensor:
    """(B, C, S, S) uint8, shifts (B, 2) row and column in [0, 2 pad] → float32, sampled bilinearly from a grid."""
    padded = F.pad(pictures.float(), [pad] * 4, "replicate")
    count, _, _, size = padded.shape
    centres = (2.0 * torch.arange(size - 2 * pad, device=padded.device) + 1.0) / size - 1.0  # in [-1, 1]
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    grid = torch.stack([columns, rows], -1).repeat(count, 1, 1, 1)  # x first
    grid = grid + shifts.flip(1)[:, None, None].float() * 2.0 / size
    return F.grid_sample(padded, grid, padding_mode="zeros", align_corners=False)


class SlowDrQV2:
    """Actor, critics and target as separate layers, every step after the other, plain float32; published defaults."""

    def __init__(self, actor_config: ActorConfig, config: AgentConfig, device: str = "cpu") -> None:
        self.config, self.device = config, device
        channels = [3 * actor_config.network.frame_stack, 32, 32, 32, 32]
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [nn.Conv2d(channels[i], channels[i + 1], 3, stride=1 + (i == 0)), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.Flatten())
        side = (actor_config.image.size - 3) // 2 + 1 - 6
        feature, hidden = actor_config.network.feature_size, actor_config.network.hidden_size
        actions = actor_config.action_size

        def trunk() -> nn.Sequential:
            return nn.Sequential(nn.Linear(32 * side**2, feature), nn.LayerNorm(feature), nn.Tanh())

        def perceptron(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                *(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()),
                nn.Linear(hidden, outputs),
            )

        self.actor = nn.ModuleDict({"trunk": trunk(), "policy": perceptron(feature, actions)})
        self.critic = nn.ModuleDict(
            {"trunk": trunk(), "q1": perceptron(feature + actions, 1), "q2": perceptron(feature + actions, 1)}
        )
        self.target = copy.deepcopy(self.critic)
        for module in (self.encoder, self.actor, self.critic, self.target):
            module.to(device)
        rate = config.learning_rate
        self.optimizers = [torch.optim.Adam(m.parameters(), rate) for m in (self.encoder, self.critic, self.actor)]

    @torch.no_grad()
    def take_weights(self, agent: DrQV2) -> None:
        """Copy the weights of ``agent``."""
        for mine, its in zip(self.encoder.parameters(), agent.actor.encoder.parameters(), strict=True):
            mine.copy_(its)
        for part in ("trunk", "policy"):
            self.actor[part].load_state_dict(getattr(agent.actor, part).state_dict())
        for critic, its_critic in ((self.critic, agent.critic), (self.target, agent.target)):
            critic["trunk"].load_state_dict(its_critic.trunk.state_dict())
            for twin, name in enumerate(("q1", "q2")):
                for layer in (0, 2, 4):
                    weights = its_critic.twins.get_submodule(str(layer)).state_dict()
                    weights = {"weight": weights["weight"][twin].T, "bias": weights["bias"][twin, 0]}
                    critic.get_submodule(f"{name}.{layer}").load_state_dict(weights)

    def draw(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Shifts (2, B, 2) and noise (2, B, A) of an update."""
        shifts = torch.randint(0, 2 * self.config.shift + 1, (2, len(actions), 2), device=self.device)
        return shifts, torch.randn((2, *actions.shape), device=self.device)

    def action(self, features: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """A noisy action (B, A); the gradient passes the bounds."""
        mean = torch.tanh(self.actor["policy"](self.actor["trunk"](features)))
        noisy = mean + (noise * sigma).clamp(-self.config.noise_clip, self.config.noise_clip)
        return noisy - noisy.detach() + noisy.detach().clamp(-1.0 + 1e-6, 1.0 - 1e-6)

    @staticmethod
    def values(critic: nn.ModuleDict, features: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Q1, Q2, (B,) each."""
        joined = torch.cat([critic["trunk"](features), actions], -1)
        return critic["q1"](joined)[:, 0], critic["q2"](joined)[:, 0]

    def update(
        self, batch: Batch, rewards: Tensor, sigma: float, drawn: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """One update; ``drawn`` replaces what ``draw`` would draw. Returns the losses."""
        actions, rewards, discounts = (x.to(self.device) for x in (batch.actions, rewards, batch.discounts))
        shifts, noise = self.draw(actions) if drawn is None else drawn
        frames = slow_shift(batch.frames.to(self.device), shifts[0], self.config.shift)
        next_frames = slow_shift(batch.next_frames.to(self.device), shifts[1], self.config.shift)
        features = self.encoder(frames / 255.0 - 0.5)
        with torch.no_grad():
            next_features = self.encoder(next_frames / 255.0 - 0.5)
            next_actions = self.action(next_features, noise[0], sigma)
            targets = rewards + discounts * torch.minimum(*self.values(self.target, next_features, next_actions))

        encoder, critic, actor = self.optimizers
        q1, q2 = self.values(self.critic, features, actions)
        critic_loss = F.mse_loss(q1, targets) + F.mse_loss(q2, targets)
        encoder.zero_grad()
        critic.zero_grad()
        critic_loss.backward()
        critic.step()
        encoder.step()

        features = features.detach()
        actor_loss = -torch.minimum(*self.values(self.critic, features, self.action(features, noise[1], sigma))).mean()
        actor.zero_grad()
        actor_loss.backward()
        actor.step()

        tau = self.config.tau
        for mine, live in zip(self.target.parameters(), self.critic.parameters(), strict=True):
            mine.data.copy_(tau * live.data + (1.0 - tau) * mine.data)
        return {"critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach(), "target_q": targets.mean()}


# ---- the comparison ----


@dataclass(frozen=True)
class Row:
    """One side of the comparison; ``ratio`` is to the slow one."""

    name: str
    ms: float
    updates_per_s: float
    ratio: float


def transitions(actor_config: ActorConfig, count: int) -> tuple[Batch, Tensor]:
    """Random ones, with rewards (count,); frames lie channels last in memory, as our replay keeps them."""
    draws = torch.Generator().manual_seed(0)
    size, channels = actor_config.image.size, 3 * actor_config.network.frame_stack
    frames = torch.randint(0, 256, (2, count, size, size, channels), dtype=torch.uint8, generator=draws)
    frames = frames.permute(0, 1, 4, 2, 3)
    actions = 2.0 * torch.rand(count, actor_config.action_size, generator=draws) - 1.0
    batch = Batch(frames[0], actions, torch.full((count,), 0.99**3), frames[1])
    return batch, torch.rand(count, generator=draws)


def take_turns(repeat: int, device: str, contenders: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Best time of each in ms, after one turn to warm up."""
    best = dict.fromkeys(contenders, float("inf"))
    for turn in range(repeat + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn:
                best[name] = min(best[name], 1e3 * (time.perf_counter() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="directory for agent_speed.json")
    parser.add_argument("--repeat", type=int, default=8, help="turns of each side")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, whose first update is slow")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    shape = ActorConfig(action_size=4, task="none", rate_hz=10.0)
    config = AgentConfig()
    batch, rewards = transitions(shape, config.batch_size)
    slow = SlowDrQV2(shape, config, options.device)
    slow.take_weights(DrQV2(shape, config, 0, options.device))
    # Channels first, as the obvious replay keeps them.
    planes = replace(batch, frames=batch.frames.contiguous(), next_frames=batch.next_frames.contiguous())
    contenders: dict[str, Callable[[], object]] = {"slow": lambda: slow.update(planes, rewards, 1.0)}

    def add(name: str, settings: AgentConfig) -> None:
        agent = DrQV2(shape, settings, 0, options.device)
        contenders[name] = lambda: agent.update(batch, rewards, 0)

    for compiled in (False, True)[: 1 + options.compile]:
        for precision in ("float32", "bfloat16"):
            add(precision + ", compiled" * compiled, AgentConfig(precision=precision, compile=compiled))
    best = take_turns(options.repeat, options.device, contenders)

    facts = {"device": options.device, "threads": options.threads, "torch": torch.__version__}
    rows = [Row(name, ms, 1e3 / ms, best["slow"] / ms) for name, ms in best.items()]
    table = Table(title=", ".join(f"{key} {value}" for key, value in facts.items()))
    for title in ("", "ms an update", "updates/s", "ratio"):
        table.add_column(title, justify="right" if title else "left")
    for row in rows:
        table.add_row(row.name, f"{row.ms:.1f}", f"{row.updates_per_s:.2f}", f"×{row.ratio:.2f}")
    Console().print(table)
    met = max(row.ratio for row in rows) >= TARGET
    print(f"at least ×{TARGET:g} with one of the settings: {'yes' if met else 'no'}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        result = {"machine": facts, "target": TARGET, "met": met, "rows": [asdict(row) for row in rows]}
        (options.out / "agent_speed.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
