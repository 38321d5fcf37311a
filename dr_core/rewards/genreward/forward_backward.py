"""A forward–backward representation (Touati and Ollivier, arXiv 2103.07945): how often a state will be met.

    F(s, a, z)ᵀB(s⁺) ≈ M(s, a, s⁺) / ρ(s⁺),   M(s, a, ·) = Σ_{t ≥ 0} γ^t P(s_{t+1} = · | s_0 = s, a_0 = a, then π)

M counts from the state that (s, a) leads to, not from s itself, as the loss pairs F(s, a) with B(s′). ρ is how often a
state is among the s′ of the replay. States are fixed features ψ of frames. GenReward (arXiv 2512.00961) pays an agent
F(s, a, z)ᵀB(ψ(I*)) for the goal frame I*: where that will be met often, it is large. Its mean over ρ is about
1 / (1 - γ) wherever the agent is, so that (1 - γ) times it is 1 for a goal that is met as often as ever.

π is what chose the next action of the replay (as SARSA does), so that no policy is evaluated for an update; there is
one goal, so that z is one vector. Scoring changes nothing; ``update`` does, so scores depend on all updates before.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dr_core.agent.actor import perceptron
from dr_core.agent.drqv2 import TwinLinear
from dr_core.checkpoint import load_weights
from dr_core.errors import CheckpointError
from dr_core.seeding import generator

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class FBConfig:
    """The representation and its learning; the defaults are the published ones."""

    size: int = 64
    """d, numbers of F, B and z."""
    hidden_size: int = 512
    """Width of the two hidden layers of F and of B."""
    learning_rate: float = 1e-4
    """Of Adam, for both."""
    discount: float = 0.99
    """γ, per step of the agent: how far M looks ahead."""
    tau: float = 0.01
    """Part of F and B that enters their targets at each update."""
    orthonormality: float = 1.0
    """Weight of ‖E[BBᵀ] - I‖²."""
    batch_size: int = 256
    """Transitions of an update."""
    update_every: int = 1
    """Updates of the agent from one update of F and B to the next; for the loop that calls it."""
    z: Literal["goal", "zero"] = "goal"
    """What F is told of the goal: B̄(ψ(I*)), scaled to length √d, or nothing, as in the published code."""

    def __post_init__(self) -> None:
        for name in ("size", "hidden_size", "update_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1")
        if self.batch_size < 2:
            raise ValueError(f"batch_size = {self.batch_size}: at least 2, as transitions are compared with others")
        if not (0.0 <= self.discount < 1.0 and 0.0 < self.tau <= 1.0 and self.learning_rate > 0.0):
            raise ValueError("discount in [0, 1), tau in (0, 1], learning_rate above 0")
        if self.orthonormality < 0.0:
            raise ValueError(f"orthonormality = {self.orthonormality}: at least 0")
        if self.z not in ("goal", "zero"):
            raise ValueError(f"z = {self.z}: goal or zero")


class Steps(NamedTuple):
    """N single steps of the replay.

    Attributes:
        features: (N, D) ψ of the frame.
        actions: (N, A) what was done there.
        next_features: (N, D) ψ of the frame it led to.
        next_actions: (N, A) what was done there.
    """

    features: Floats
    actions: Floats
    next_features: Floats
    next_actions: Floats


class Networks(nn.Module):
    """F, twice, and B, on standardised features."""

    def __init__(self, feature_size: int, action_size: int, config: FBConfig) -> None:
        super().__init__()
        self.forwards = perceptron(
            feature_size + action_size + config.size, config.hidden_size, config.size, TwinLinear
        )
        self.backwards = perceptron(feature_size, config.hidden_size, config.size)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(feature_size))
        self.register_buffer("scale", torch.zeros(()))  # 0: not known yet

    def standardised(self, features: Tensor) -> Tensor:
        """(..., D) → (..., D). One scale for all numbers: what hardly changes must not be blown up to noise."""
        return (features - self.mean) / self.scale

    def F(self, features: Tensor, actions: Tensor, z: Tensor) -> Tensor:
        """Standardised (N, D), (N, A), z (d,) → (2, N, d)."""
        out: Tensor = self.forwards(torch.cat([features, actions, z.expand(len(features), -1)], -1))
        return out

    def B(self, features: Tensor) -> Tensor:
        """Standardised (N, D) → (N, d)."""
        out: Tensor = self.backwards(features)
        return out


class ForwardBackward:
    """Both networks, their targets and optimiser, and the reward they make for one goal.

    Args:
        goal: ψ of the goal frame (D,).
        action_size: A.
        seed: of the first weights.
    """

    def __init__(
        self, goal: Floats, action_size: int, seed: int = 0, config: FBConfig = FBConfig(), *, device: str = "cpu"
    ) -> None:
        self.config, self.device = config, torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(seed, "forward_backward").initial_seed() % 2**63)
            self.networks = Networks(len(goal), action_size, config)
            _draw_weights(self.networks)
        self.networks.to(self.device)
        self.targets = copy.deepcopy(self.networks).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.networks.parameters(), config.learning_rate, fused=True)
        self._goal = torch.as_tensor(np.asarray(goal, np.float32)).to(self.device)
        self._known: tuple[Tensor, Tensor] | None = None  # z and B(ψ(I*)), until the weights change

    @property
    def ready(self) -> bool:
        """Whether ``standardise`` was called, or restored."""
        return float(self.networks.scale) > 0.0

    def standardise(self, features: Floats) -> None:
        """Fix the mean and the one scale that features are standardised with, from features (N, D) met at first."""
        values = torch.as_tensor(features).to(self.device)
        mean = values.mean(0)
        scale = (values - mean).square().mean().sqrt().clamp(min=1e-6)
        for networks in (self.networks, self.targets):
            networks.mean.copy_(mean)
            networks.scale.copy_(scale)
        self._known = None

    @torch.no_grad()
    def z(self) -> Tensor:
        """What F is told of the goal, (d,)."""
        if self.config.z == "zero":
            return torch.zeros(self.config.size, device=self.device)
        backward = self.targets.B(self.targets.standardised(self._goal)[None])[0]
        return math.sqrt(self.config.size) * backward / backward.norm().clamp(min=1e-12)

    @torch.no_grad()
    def score(self, features: Floats, actions: Floats) -> Floats:
        """(N, D), (N, A) → (N,): the smaller F(s, a, z)ᵀB(ψ(I*))."""
        self._require_ready()
        networks = self.networks
        if self._known is None:
            self._known = self.z(), networks.B(networks.standardised(self._goal)[None])[0]
        z, goal = self._known  # (d,) both
        forward = networks.F(networks.standardised(self._moved(features)), self._moved(actions), z)
        return (forward @ goal).amin(0).cpu().numpy()

    def update(self, steps: Steps, *, metrics: bool = False) -> dict[str, float]:
        """One step of F and B, one of their targets; with ``metrics`` what the losses were before it."""
        self._require_ready()
        networks, targets = self.networks, self.targets
        features, actions, next_features, next_actions = (self._moved(part) for part in steps)
        features, next_features = networks.standardised(features), networks.standardised(next_features)
        z = self.z()
        with torch.no_grad():
            wanted = (targets.F(next_features, next_actions, z) @ targets.B(next_features).T).amin(0)  # (N, N)
        backward = networks.B(next_features)
        measure = networks.F(features, actions, z) @ backward.T  # (2, N, N)
        temporal = temporal_loss(measure, self.config.discount * wanted)
        orthonormal = orthonormality_loss(backward)
        loss = temporal + self.config.orthonormality * orthonormal
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for target, live in zip(targets.parameters(), networks.parameters(), strict=True):
                target.lerp_(live, self.config.tau)
        self._known = None
        if not metrics:
            return {}
        told = {"fb_loss": temporal.detach(), "fb_orthonormality": orthonormal.detach()}
        told["fb_measure"] = measure.detach().mean() * (1.0 - self.config.discount)  # 1 once it is learned
        return dict(zip(told, torch.stack(list(told.values())).tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """A copy of weights, targets and optimiser, tensors and plain numbers only."""
        networks = {"networks": dict(self.networks.state_dict()), "targets": dict(self.targets.state_dict())}
        return copy.deepcopy({**networks, "optimizer": self.optimizer.state_dict()})

    def restore(self, state: Mapping[str, Any], where: Path = Path("the forward–backward state")) -> None:
        """Go on from what ``state`` gave: the same scores and updates.

        Args:
            where: named in errors.

        Raises:
            CheckpointError: of other networks, or no such state.
        """
        try:
            load_weights(self.networks, state["networks"], "", where)
            load_weights(self.targets, state["targets"], "", where)
            self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
            self._known = None
        except (KeyError, ValueError, TypeError) as error:  # torch's refusals of a foreign optimiser state
            raise CheckpointError(
                str(where),
                expected="weights, targets and optimiser of a forward–backward representation",
                found=repr(error),
                next_step="give the state as it was saved",
            ) from error

    def _moved(self, values: Floats) -> Tensor:
        return torch.as_tensor(values).to(self.device, non_blocking=True)

    def _require_ready(self) -> None:
        if not self.ready:
            raise ValueError("features are not standardised yet: call standardise first")


def temporal_loss(measure: Tensor, wanted: Tensor) -> Tensor:
    """E[(F(s, a, z)ᵀB(s″) - γF̄(s′, a′, z)ᵀB̄(s″))²] - 2E[F(s, a, z)ᵀB(s′)], summed over the twins, ().

    s″ is drawn independently of (s, a, s′): here it is the s′ of every other row.

    Args:
        measure: (2, N, N) entry i, j: F(s_i, a_i, z)ᵀB(s′_j).
        wanted: (N, N) γF̄(s′_i, a′_i, z)ᵀB̄(s′_j), constant.
    """
    errors = (measure - wanted).square()
    return (_mean_of_others(errors) - 2.0 * measure.diagonal(dim1=1, dim2=2).mean(-1)).sum()


def orthonormality_loss(backward: Tensor) -> Tensor:
    """An unbiased estimate of ‖E[BBᵀ] - I‖² = E[(B(s)ᵀB(s⁺))²] - 2E[‖B(s)‖²] + d from rows (N, d), ().

    s and s⁺ are independent, so that only products of different rows enter the first term. The norm of the batch's own
    mean, ‖(1/N)ΣBBᵀ - I‖², has in it (1/N)·E[‖B‖⁴] too, which at d = 64 and N = 64 is as large as d, and is smallest
    where B is too short.
    """
    gram = backward @ backward.T  # (N, N)
    return _mean_of_others(gram.square()) - 2.0 * gram.diagonal().mean() + backward.shape[1]


def _mean_of_others(square: Tensor) -> Tensor:
    """(..., N, N) → (...,): mean of what is not on the diagonal."""
    count = square.shape[-1]
    return (square.sum((-2, -1)) - square.diagonal(dim1=-2, dim2=-1).sum(-1)) / (count * (count - 1))


def _draw_weights(networks: Networks) -> None:
    """Orthogonal weights without biases, from torch's own generator."""
    for layer in networks.modules():
        if isinstance(layer, TwinLinear):
            for weight in layer.weight.detach():
                nn.init.orthogonal_(weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
