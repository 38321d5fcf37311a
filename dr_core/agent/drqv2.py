"""DrQ-v2 (Yarats et al., arXiv 2107.09645): continuous actions from pictures, learned off-policy.

One encoder serves actor and critics and learns from the critics' loss alone; actor and critics each have a trunk of
their own behind it. Pictures are shifted at random, targets are n-step with the smaller of two target critics, and
the exploration noise shrinks on a schedule. Options of DrM (Xu et al., arXiv 2310.19668) are in ``DormantConfig``.

The numbers are the published ones; less is done for them: a random shift by whole pixels gathers bytes where the
published code interpolates floats, no gradient is computed that no optimiser uses, and convolutions see channels last.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dr_core.agent.actor import Actor, ActorConfig, perceptron, trunk
from dr_core.errors import CheckpointError, ConfigError
from dr_core.seeding import generator, generator_on

INSIDE = 1.0 - 1e-6  # noisy actions stay below 1
Array = NDArray[Any] | Tensor


@dataclass(frozen=True)
class DormantConfig:
    """DrM: explore and perturb by the share of the actor's neurons that sleep (arXiv 2310.19668, table 1).

    The third part of the paper, a learned value that joins the critics' target, is not here.
    """

    threshold: float = 0.025
    """τ: a neuron sleeps whose mean |output| is at most this times its layer's."""
    awake_below: float = 0.2
    """β̂: dormant ratio below which the agent is awake, and sigma's schedule starts."""
    temperature: float = 0.1
    """T of the exploration: sigma is at least 1 / (1 + exp((β̂ - β) / T))."""
    perturb_every: int = 100_000
    """Agent's steps between perturbations."""
    perturb_rate: float = 2.0
    """k: of the weights, clip(1 - k β, smallest_factor, largest_factor) is kept; the rest is drawn anew."""
    smallest_factor: float = 0.2
    largest_factor: float = 0.9

    def __post_init__(self) -> None:
        if self.perturb_every < 1 or self.temperature <= 0.0 or self.threshold < 0.0 or self.perturb_rate < 0.0:
            raise ValueError("perturb_every at least 1, temperature above 0, threshold and perturb_rate at least 0")
        if not 0.0 <= self.smallest_factor <= self.largest_factor <= 1.0:
            raise ValueError("0 <= smallest_factor <= largest_factor <= 1")


@dataclass(frozen=True)
class AgentConfig:
    """How the agent learns. A step is one action of one environment."""

    batch_size: int = 256
    learning_rate: float = 1e-4
    """Of Adam, for encoder, actor and critics."""
    n_step: int = 3
    """Rewards that are summed before the target critics take over."""
    discount: float = 0.99
    """Per step."""
    tau: float = 0.01
    """Part of the critics that enters the target critics at each update."""
    update_every: int = 2
    """Steps per update."""
    seed_steps: int = 2000
    """Steps before the first update: 4000 frames at an action repeat of 2."""
    explore_steps: int = 2000
    """Steps at first whose actions are uniformly random."""
    explore_hold: int = 1
    """For how many steps of an environment these and the later noise are held: drawn anew each time, they hardly move
    an arm (after Eberhard et al., ICLR 2023, on exploration that is correlated in time)."""
    shift: int = 4
    """Largest random shift, in pixels each way."""
    sigma_start: float = 1.0
    sigma_end: float = 0.1
    sigma_steps: int = 3_000_000
    """The noise's deviation falls linearly from start to end in so many steps."""
    noise_clip: float = 0.3
    """Bound of the noise inside an update; acting has none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products inside an update; weights, targets, losses and acting are float32."""
    saturation_penalty: float = 0.0
    """Weight of the mean square of the actor's output before its tanh, in units of Q: a policy that saturates early
    has no gradient left to leave a corner with."""
    compile: bool = False
    """Fuse the update's operations with torch.compile."""
    drm: DormantConfig | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "n_step", "update_every", "sigma_steps", "explore_hold"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1")
        for name in ("seed_steps", "explore_steps", "shift", "noise_clip", "saturation_penalty"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 0")
        if not (0.0 <= self.discount <= 1.0 and 0.0 < self.tau <= 1.0 and self.learning_rate > 0.0):
            raise ValueError("discount in [0, 1], tau in (0, 1], learning_rate above 0")
        if not 0.0 <= self.sigma_end <= self.sigma_start:
            raise ValueError("0 <= sigma_end <= sigma_start")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision = {self.precision}: float32 or bfloat16")


class Transitions(Protocol):
    """What an update learns from; arrays of NumPy or torch, frames in any memory order."""

    @property
    def frames(self) -> Array: ...  # (B, 3 * frame_stack, S, S) uint8
    @property
    def actions(self) -> Array: ...  # (B, A)
    @property
    def discounts(self) -> Array: ...  # (B,): discount^n, or 0 after a terminal
    @property
    def next_frames(self) -> Array: ...  # as frames, n steps later


# ---- augmentation ----


def random_shift(pictures: Tensor, shifts: Tensor, pad: int) -> Tensor:
    """Crop each picture, its edges repeated outwards by ``pad`` pixels, at a corner of its own.

    The published random shift interpolates bilinearly at whole pixels, which gives the same numbers.

    Args:
        pictures: (B, C, S, S).
        shifts: (B, 2) integers in [0, 2 * pad]: row and column of the crop; ``pad`` leaves a picture as it is.

    Returns:
        (B, C, S, S), channels last in memory.
    """
    if pad == 0:
        return pictures.contiguous(memory_format=torch.channels_last)
    size = pictures.shape[-1]
    x = pictures.permute(0, 2, 3, 1)  # (B, S, S, C)
    x = torch.cat([x[:, :, :1].expand(-1, -1, pad, -1), x, x[:, :, -1:].expand(-1, -1, pad, -1)], 2)
    x = torch.cat([x[:, :1].expand(-1, pad, -1, -1), x, x[:, -1:].expand(-1, pad, -1, -1)], 1)
    windows = x.unfold(1, size, 1).unfold(2, size, 1).permute(0, 1, 2, 4, 5, 3)  # (B, 2 pad + 1, 2 pad + 1, S, S, C)
    each = torch.arange(len(x), device=x.device)
    return windows[each, shifts[:, 0], shifts[:, 1]].permute(0, 3, 1, 2)


def scaled(pictures: Tensor) -> Tensor:
    """uint8 → float32 in [-0.5, 0.5]."""
    return pictures.float().div_(255.0).sub_(0.5)


# ---- networks ----


class TwinLinear(nn.Module):
    """Two linear layers side by side: (B, inputs), the same for both, or (2, B, inputs) → (2, B, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(2, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(2, -1, -1)
        if x.device.type == "cpu":  # where two products are faster than a batch of two
            return torch.stack([torch.addmm(*each) for each in zip(self.bias, x, self.weight, strict=True)])
        return torch.baddbmm(self.bias, x, self.weight)


class Critic(nn.Module):
    """Two Q functions behind one trunk: features (B, size), actions (B, A) → (2, B)."""

    def __init__(self, config: ActorConfig, size: int) -> None:
        super().__init__()
        features, hidden = config.network.feature_size, config.network.hidden_size
        self.trunk = trunk(size, features)
        self.twins = perceptron(features + config.action_size, hidden, 1, TwinLinear)

    def forward(self, features: Tensor, actions: Tensor) -> Tensor:
        return self.judge(self.trunk(features), actions)

    def judge(self, summary: Tensor, actions: Tensor) -> Tensor:
        """The trunk's output (B, feature_size), actions (B, A) → (2, B)."""
        return self.twins(torch.cat([summary.to(actions.dtype), actions], -1)).squeeze(-1)


def draw_weights(module: nn.Module, draws: torch.Generator) -> None:
    """Orthogonal weights, those of convolutions times √2, and no biases, as published."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.orthogonal_(layer.weight, math.sqrt(2.0), generator=draws)
        elif isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, generator=draws)
        elif isinstance(layer, TwinLinear):
            for weight in layer.weight.detach():
                nn.init.orthogonal_(weight, generator=draws)
        if isinstance(layer, nn.Conv2d | nn.Linear | TwinLinear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


# ---- DrM ----


@torch.no_grad()
def dormant_ratio(actor: Actor, features: Tensor, threshold: float) -> Tensor:
    """Share of the neurons of the actor's linear layers that sleep on ``features`` (B, encoder.size), ().

    A neuron sleeps if its output's mean magnitude over the batch is at most ``threshold`` times the mean of its layer.
    """
    asleep, neurons, x = features.new_zeros(()), 0, features
    for layer in (*actor.trunk, *actor.policy):
        x = layer(x)
        if isinstance(layer, nn.Linear):
            magnitude = x.abs().float().mean(0)
            asleep = asleep + (magnitude <= threshold * magnitude.mean()).sum()
            neurons += magnitude.numel()
    return asleep / neurons


@torch.no_grad()
def perturb(module: nn.Module, kept: Tensor, draws: torch.Generator) -> None:
    """Shrink and perturb the linear layers: ``kept`` () of their weights stays, the rest is drawn anew."""
    fresh = copy.deepcopy(module).cpu()
    draw_weights(fresh, draws)
    for old, new in zip(module.modules(), fresh.modules(), strict=True):
        if isinstance(old, nn.Linear | TwinLinear):
            for weight, drawn in zip(old.parameters(), new.parameters(), strict=True):
                weight.lerp_(drawn.to(weight.device), 1.0 - kept)


# ---- the agent ----


class DrQV2:
    """Actor, critics, target critics and their optimisers.

    Args:
        actor_config: of the acting network; the critics have its widths.
        config: of the learning.
        seed: of the weights and of every random number later.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigError: the device cannot do what ``config.precision`` or ``config.compile`` asks for.
    """

    def __init__(
        self, actor_config: ActorConfig, config: AgentConfig, seed: int, device: str | torch.device = "cpu"
    ) -> None:
        self.config, self.seed, self.device = config, seed, torch.device(device)
        _refuse_unsupported(config, self.device)
        with torch.random.fork_rng(devices=[]):  # layers draw weights of their own at first
            self.actor = Actor(actor_config)
            self.critic = Critic(actor_config, self.actor.encoder.size)
        draws = generator(seed, "agent", "weights")
        draw_weights(self.actor, draws)
        draw_weights(self.critic, draws)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        for network in (self.actor, self.critic, self.target):
            network.to(self.device)

        # Fused: one pass over weights and moments instead of one for each operation of Adam.
        self._policy = [*self.actor.trunk.parameters(), *self.actor.policy.parameters()]
        self._values = [*self.actor.encoder.parameters(), *self.critic.parameters()]
        self._optimizers = {
            "actor": torch.optim.Adam(self._policy, config.learning_rate, fused=True),
            "critic": torch.optim.Adam(self._values, config.learning_rate, fused=True),
        }
        self._draws = {
            "update": generator_on(self.device, seed, "agent", "update"),
            "perturb": generator(seed, "agent", "perturb"),
        }
        self._last_step = -1  # of the last update
        # DrM's state stays on the device, so that no update waits for it.
        self._dormant = torch.ones((), device=self.device)
        self._awake_since = torch.full((), -1, dtype=torch.int64, device=self.device)

        compiled: Callable[[Any], Any] = torch.compile if config.compile else lambda function: function
        self._encode, self._target_values = compiled(self._encode_eagerly), compiled(self._target_values_eagerly)
        self._critic_loss, self._actor_loss = compiled(self._critic_loss_eagerly), compiled(self._actor_loss_eagerly)

    def sigma(self, step: int) -> float | Tensor:
        """Deviation of the exploration noise; with DrM a tensor () on the device."""
        config = self.config
        if config.drm is None:
            return _linear(config, step / config.sigma_steps)
        asleep = torch.sigmoid((self._dormant - config.drm.awake_below) / config.drm.temperature)
        scheduled = _linear(config, ((step - self._awake_since) / config.sigma_steps).clamp(0.0, 1.0))
        return torch.where(self._awake_since < 0, asleep, torch.maximum(asleep, torch.as_tensor(scheduled)))

    @torch.no_grad()
    def act(self, frames: NDArray[np.uint8], step: int, *, explore: bool) -> NDArray[np.float32]:
        """Actions (B, A) in [-1, 1] on the newest pictures (B, S, S, 3 * frame_stack) uint8.

        Args:
            step: of the agent, counts all environments.
            explore: add noise, and act at random in the first ``explore_steps``; False gives the mean.
        """
        shape = (len(frames), self.actor.config.action_size)
        # The step alone decides, so that a resumed run draws what it would have drawn.
        moment = step // (len(frames) * self.config.explore_hold)
        draws = generator_on(self.device, self.seed, "agent", "act", moment) if explore else None
        if explore and step < self.config.explore_steps:
            return (2.0 * torch.rand(shape, device=self.device, generator=draws) - 1.0).cpu().numpy()
        pictures = torch.as_tensor(np.ascontiguousarray(frames)).to(self.device).permute(0, 3, 1, 2)
        actions = self.actor(pictures)
        if explore:
            noise = torch.randn(shape, device=self.device, generator=draws)
            actions = (actions + noise * self.sigma(step)).clamp(-INSIDE, INSIDE)
        return actions.cpu().numpy()

    def update(self, batch: Transitions, rewards: Array, step: int, *, metrics: bool = False) -> dict[str, float]:
        """One step of critics and encoder, one of the actor, one of the target critics.

        Args:
            batch: transitions; bytes travel to the device, everything else happens there.
            rewards: (B,), the discounted sums over n steps.
            step: of the agent.
            metrics: return the losses and what explains them. It waits for the device; otherwise nothing does.
        """
        actions, discounts = self._moved(batch.actions), self._moved(batch.discounts)
        rewards = self._moved(rewards)
        size, pad = len(actions), self.config.shift
        draws = self._draws["update"]
        shifts = torch.randint(0, 2 * pad + 1, (2, size, 2), device=self.device, generator=draws)
        noise = torch.randn((2, *actions.shape), device=self.device, generator=draws)
        frames = scaled(random_shift(self._moved(batch.frames), shifts[0], pad))
        next_frames = scaled(random_shift(self._moved(batch.next_frames), shifts[1], pad))

        self._perturb_if_due(step)
        features = self._encode(frames)
        self._watch_dormant(features.detach(), step)
        noise = (noise * self.sigma(step)).clamp(-self.config.noise_clip, self.config.noise_clip)
        with torch.no_grad():
            targets = self._target_values(next_frames, noise[0], rewards, discounts)  # (B,)
        critic_loss, values = self._critic_loss(features, actions, targets)
        self._descend("critic", critic_loss, self._values)
        actor_loss = self._actor_loss(features.detach(), noise[1])
        self._descend("actor", actor_loss, self._policy)
        with torch.no_grad():
            for target, live in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                target.lerp_(live, self.config.tau)
        self._last_step = step
        if not metrics:
            return {}
        told = {
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "q": values.detach().mean(),
            "target_q": targets.mean(),
            "batch_reward": rewards.mean(),
            "sigma": torch.as_tensor(self.sigma(step), device=self.device),
        }
        if self.config.drm is not None:
            told["dormant_ratio"] = self._dormant
        return dict(zip(told, torch.stack([value.double() for value in told.values()]).tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """A copy of everything that later actions and losses depend on: tensors and plain numbers."""
        return copy.deepcopy(
            {
                "networks": {name: network.state_dict() for name, network in self._networks()},
                "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
                "generators": {name: draws.get_state() for name, draws in self._draws.items()},
                "seed": self.seed,
                "dormant": self._dormant,
                "awake_since": self._awake_since,
                "last_step": self._last_step,
            }
        )

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave.

        Raises:
            CheckpointError: it is the state of another agent.
        """
        try:
            for name, network in self._networks():
                network.load_state_dict(state["networks"][name])
            for name, optimizer in self._optimizers.items():
                optimizer.load_state_dict(copy.deepcopy(state["optimizers"][name]))
            for name, draws in self._draws.items():
                draws.set_state(state["generators"][name].cpu())
            self.seed = int(state["seed"])
            self._dormant = state["dormant"].to(self.device, copy=True)
            self._awake_since = state["awake_since"].to(self.device, copy=True)
            self._last_step = int(state["last_step"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                "the agent's training state",
                expected="that of an agent with these settings",
                found=" ".join(str(error).split()),
                next_step="go on with the settings it was trained with, or start anew",
            ) from error

    # ---- the parts of an update, in its order ----

    def _encode_eagerly(self, frames: Tensor) -> Tensor:
        """(B, 3 * frame_stack, S, S) → (B, encoder.size)."""
        with self._rounded():
            return self.actor.encoder(frames)

    def _target_values_eagerly(self, next_frames: Tensor, noise: Tensor, rewards: Tensor, discounts: Tensor) -> Tensor:
        """r + γ^n min Q̄(o', a') with a' the noisy action of the actor, (B,)."""
        with self._rounded():
            features = self.actor.encoder(next_frames)
            actions = (self.actor.mean(features).float() + noise).clamp(-INSIDE, INSIDE)
            values = self.target(features, actions)
        return rewards + discounts * values.float().amin(0)

    def _critic_loss_eagerly(self, features: Tensor, actions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared errors of both critics, summed, (); their values (2, B)."""
        with self._rounded():
            values = self.critic(features, actions)
        values = values.float()
        return (values - targets).square().mean(1).sum(), values

    def _actor_loss_eagerly(self, features: Tensor, noise: Tensor) -> Tensor:
        """Minus the smaller Q of the actor's noisy action, (); the gradient passes the bounds of the action."""
        with self._rounded():
            with torch.no_grad():
                summary = self.critic.trunk(features)
            raw = self.actor.policy(self.actor.trunk(features)).float()
            actions = torch.tanh(raw) + noise
            actions = actions + (actions.clamp(-INSIDE, INSIDE) - actions).detach()
            values = self.critic.judge(summary, actions)
        return self.config.saturation_penalty * raw.square().mean() - values.float().amin(0).mean()

    def _descend(self, name: str, loss: Tensor, parameters: list[nn.Parameter]) -> None:
        optimizer = self._optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)  # and no other gradient
        optimizer.step()

    def _watch_dormant(self, features: Tensor, step: int) -> None:
        if self.config.drm is None:
            return
        with self._rounded():
            self._dormant = dormant_ratio(self.actor, features, self.config.drm.threshold)
        wakes = (self._awake_since < 0) & (self._dormant < self.config.drm.awake_below)
        self._awake_since = torch.where(wakes, step, self._awake_since)

    def _perturb_if_due(self, step: int) -> None:
        drm = self.config.drm
        if drm is None or self._last_step < 0 or step // drm.perturb_every == self._last_step // drm.perturb_every:
            return
        kept = (1.0 - drm.perturb_rate * self._dormant).clamp(drm.smallest_factor, drm.largest_factor)
        for _, network in self._networks():
            perturb(network, kept, self._draws["perturb"])
        for optimizer in self._optimizers.values():
            optimizer.state.clear()

    # ---- helpers ----

    def _networks(self) -> Iterator[tuple[str, nn.Module]]:
        yield from (("actor", self.actor), ("critic", self.critic), ("target", self.target))

    def _moved(self, values: Array) -> Tensor:
        return torch.as_tensor(values).to(self.device, non_blocking=True)

    def _rounded(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")


def _linear(config: AgentConfig, share: Any) -> Any:
    """Sigma after a ``share`` of its steps, a number or a tensor."""
    share = min(max(share, 0.0), 1.0) if isinstance(share, float) else share
    return (1.0 - share) * config.sigma_start + share * config.sigma_end


def _refuse_unsupported(config: AgentConfig, device: torch.device) -> None:
    if device.type not in ("cpu", "cuda"):
        raise ConfigError("device", expected="cpu or cuda", found=str(device), next_step="give one of them")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", expected="a GPU", found="none that torch sees", next_step="give cpu")
    if config.precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError(
            "precision", expected="a GPU that has bfloat16", found=torch.cuda.get_device_name(device),
            next_step="set precision: float32",
        )  # fmt: skip
    if config.compile and device.type == "cpu":
        compiler = os.environ.get("CXX", "g++ clang++ c++").split()
        if not any(shutil.which(name) for name in compiler):
            raise ConfigError(
                "compile", expected="a C++ compiler", found="none of " + ", ".join(compiler),
                next_step="install g++, or set compile: false",
            )  # fmt: skip
