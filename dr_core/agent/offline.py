"""Offline reinforcement learning from recorded episodes: implicit Q-learning (Kostrikov et al., arXiv 2110.06169).

Bags of mixed quality are labelled once, with any reward, and put into a replay; then actor, critics and a value
function learn from it without another step of the robot. The value is an expectile of the critics over the recorded
actions, so that no action is judged which nobody has tried; the policy repeats the recorded actions, the better ones
more often. The networks, the random shift of the pictures and the one encoder are those of ``drqv2``.

Not as published: the policy's learning rate does not fall, its deviation is fixed at 1, and rewards are scaled by the
returns of the data set whatever the task, see ``OfflineConfig.return_span``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dr_core.agent.actor import Actor, ActorConfig, NetworkConfig, perceptron, trunk
from dr_core.agent.drqv2 import Critic, Transitions, draw_weights, random_shift, scaled
from dr_core.agent.loop import SPARSE, VIDEO
from dr_core.agent.replay import Batch, Replay, ReplayError
from dr_core.checkpoint import load_weights
from dr_core.data.episodes import Episode, read_episode
from dr_core.data.images import ImageRule
from dr_core.errors import BagError
from dr_core.files import write_whole
from dr_core.rewards.combine import combine
from dr_core.rewards.names import FROM_GOALS, RewardName
from dr_core.rewards.online import EpisodeReward
from dr_core.seeding import generator, generator_on, numpy_generator

Frames = NDArray[np.uint8]
LABELS = "labels.json"
FEWEST_STEPS = 2
BEYOND = 1e-3
"""How far outside [-1, 1] a recorded action may lie by rounding; it is clipped."""


@dataclass(frozen=True)
class OfflineConfig:
    """One offline training."""

    steps: int = 1_000_000
    """Updates."""
    reward: RewardName = "default"
    success_weight: float = 1.0
    """What a success adds to the reward; it is the whole reward of `sparse`."""
    return_span: float = 100.0
    """Rewards are scaled so that the episodes' returns span this, 0 included. Published: 1000 for episodes of 1000
    steps, so about 1 a step, on which the temperature depends."""
    batch_size: int = 256
    learning_rate: float = 3e-4
    """Of Adam, for all networks."""
    n_step: int = 1
    """Rewards that are summed before the value takes over."""
    discount: float = 0.99
    """Per step."""
    tau: float = 0.005
    """Part of the critics that enters the target critics at each update."""
    expectile: float = 0.7
    """Of the critics over the recorded actions; 0.5 is their mean, 1 their maximum."""
    temperature: float = 3.0
    """The inverse temperature: an action's weight is exp(temperature * advantage); 0 clones the behaviour."""
    weight_clip: float = 100.0
    """Largest weight of an action."""
    shift: int = 4
    """Largest random shift, in pixels each way."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products inside an update; weights, targets and losses are float32."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    image: ImageRule = field(default_factory=ImageRule)
    """How a recorded picture becomes the network's, and the reward model's."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "n_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1")
        if not (0.0 <= self.discount <= 1.0 and 0.0 < self.tau <= 1.0 and self.learning_rate > 0.0):
            raise ValueError("discount in [0, 1], tau in (0, 1], learning_rate above 0")
        if not (0.0 < self.expectile < 1.0 and self.temperature >= 0.0 and self.weight_clip > 0.0):
            raise ValueError("expectile in (0, 1), temperature at least 0, weight_clip above 0")
        if self.return_span <= 0.0 or self.success_weight < 0.0 or self.shift < 0:
            raise ValueError("return_span above 0, success_weight and shift at least 0")
        if self.reward in ("rnd", "amp", *FROM_GOALS):
            raise ValueError(f"reward = {self.reward}: it follows what the agent explores, and offline it does not")


PRESETS: dict[str, OfflineConfig] = {
    # For a workstation's processor: smaller networks and batches, and values that travel faster through an episode.
    "default": OfflineConfig(
        steps=5_000, batch_size=64, n_step=3, tau=0.01, precision="bfloat16",
        network=NetworkConfig(strides=(3, 2, 1, 1), hidden_size=256),
    ),
    "paper": OfflineConfig(),
}  # fmt: skip
"""Where a user's settings start from."""


# ---- the learner ----


def expectile_loss(errors: Tensor, expectile: float) -> Tensor:
    """Mean of |expectile - 1(u < 0)| u² over errors u, (): its minimum over v, u = q - v, is that expectile of q."""
    return ((expectile - (errors < 0.0).to(errors.dtype)).abs() * errors.square()).mean()


class Value(nn.Module):
    """What a picture is worth under the better recorded actions: features (B, size) → (B,)."""

    def __init__(self, config: ActorConfig, size: int) -> None:
        super().__init__()
        features, hidden = config.network.feature_size, config.network.hidden_size
        self.layers = nn.Sequential(trunk(size, features), perceptron(features, hidden, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features).squeeze(-1)


class IQL:
    """Actor, critics, target critics and value, behind the actor's encoder, which learns from all their losses.

    Args:
        actor_config: of the acting network; the others have its widths.
        config: of the learning.
        device: "cpu", "cuda" or "cuda:N".
    """

    def __init__(self, actor_config: ActorConfig, config: OfflineConfig, device: str | torch.device = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        with torch.random.fork_rng(devices=[]):  # layers draw weights of their own at first
            self.actor = Actor(actor_config)
            self.critic = Critic(actor_config, self.actor.encoder.size)
            self.value = Value(actor_config, self.actor.encoder.size)
        draws = generator(config.seed, "offline", "weights")
        learning: tuple[nn.Module, ...] = (self.actor, self.critic, self.value)
        for network in learning:
            draw_weights(network, draws)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        for network in self.networks().values():
            network.to(self.device)
        # One for all: Adam scales each weight by itself, and only the encoder learns from more than one loss.
        weights = [weight for network in learning for weight in network.parameters()]
        self.optimizer = torch.optim.Adam(weights, config.learning_rate, fused=True)

    def networks(self) -> dict[str, nn.Module]:
        """By name."""
        return {"actor": self.actor, "critic": self.critic, "value": self.value, "target": self.target}

    def update(self, batch: Transitions, rewards: NDArray[np.float32], index: int) -> dict[str, Tensor]:
        """One step of everything; the losses and what explains them, as scalars on the device.

        Args:
            batch: transitions over n steps.
            rewards: (B,), the discounted sums over n steps.
            index: of the update: the random shifts depend on it and on the seed only.
        """
        config = self.config
        actions, discounts = self._moved(batch.actions), self._moved(batch.discounts)
        draws = generator_on(self.device, config.seed, "offline", "shifts", index)
        shifts = torch.randint(0, 2 * config.shift + 1, (2, len(actions), 2), device=self.device, generator=draws)
        frames = scaled(random_shift(self._moved(batch.frames), shifts[0], config.shift))
        next_frames = scaled(random_shift(self._moved(batch.next_frames), shifts[1], config.shift))
        # Apart: inside one region, autocast would use the weights that it rounds here again, without gradients.
        with torch.no_grad(), self._rounded():
            next_values = self.value(self.actor.encoder(next_frames)).float()  # (B,)
        with self._rounded():
            features = self.actor.encoder(frames)
            values = self.value(features).float()
            q = self.critic(features, actions).float()  # (2, B)
            means = self.actor.mean(features).float()  # (B, A)
        with torch.no_grad(), self._rounded():
            judged = self.target(features, actions).float().amin(0)  # (B,)
        targets = self._moved(rewards) + discounts * next_values
        advantages = judged - values.detach()
        weights = (config.temperature * advantages).exp().clamp(max=config.weight_clip)
        losses = {
            "critic_loss": (q - targets).square().mean(1).sum(),
            "value_loss": expectile_loss(judged - values, config.expectile),
            # Minus the weighted log-likelihood of a Gaussian of deviation 1, but for a constant.
            "actor_loss": (weights * 0.5 * (means - actions).square().sum(-1)).mean(),
        }
        loss = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for target, live in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                target.lerp_(live, config.tau)
        told = {"loss": loss, **losses, "q": q.mean(), "value": values.mean(), "advantage": advantages.mean()}
        told |= {"weight": weights.mean(), "clipped": (weights >= config.weight_clip).float().mean()}
        return {name: value.detach() for name, value in told.items()}

    def _moved(self, values: NDArray[Any] | Tensor) -> Tensor:
        return torch.as_tensor(values).to(self.device, non_blocking=True)

    def _rounded(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")


class OfflineStage:
    """What ``dr_core.training.train`` repeats: one update from the labelled replay.

    Args:
        agent: what learns.
        replay: labelled episodes, with the columns VIDEO and SPARSE.
        scale: what their sum is multiplied by, see ``Labels``.
    """

    name = "iql"

    def __init__(self, agent: IQL, replay: Replay, scale: float) -> None:
        self.agent, self.replay, self.scale = agent, replay, scale
        self.steps = agent.config.steps

    def step(self, index: int) -> dict[str, Tensor]:
        """Draw a batch and learn from it."""
        config = self.agent.config
        batch = self.replay.sample(config.batch_size, numpy_generator(config.seed, "offline", "replay", index))
        return self.agent.update(batch, self._reward(batch), index)

    def _reward(self, batch: Batch) -> NDArray[np.float32]:
        video, success = batch.rewards[VIDEO], batch.rewards[SPARSE]
        total: NDArray[np.float32] = combine(
            video, success=success, alpha=0.0, success_weight=self.agent.config.success_weight
        ).total
        return np.asarray(self.scale * total, np.float32)

    def tensors(self) -> dict[str, Tensor]:
        """Weights by name."""
        named = self.agent.networks().items()
        return {f"{name}.{key}": value for name, network in named for key, value in network.state_dict().items()}

    def training_state(self) -> dict[str, Any]:
        """Everything else that the next update depends on."""
        return {"optimizer": copy.deepcopy(self.agent.optimizer.state_dict())}

    def restore(self, tensors: Mapping[str, Tensor], training: Mapping[str, Any], where: Path) -> None:
        """Go on from what the two above gave."""
        for name, network in self.agent.networks().items():
            load_weights(network, tensors, f"{name}.", where)
        self.agent.optimizer.load_state_dict(training["optimizer"])


# ---- the data ----


@dataclass(frozen=True)
class DataSet:
    """The episodes that can be learned from, and what all of them share.

    Attributes:
        paths: of the episodes.
        frames: of all of them together.
        left_out: why others are not among them, a sentence for each.
    """

    paths: tuple[Path, ...]
    task: str
    rate_hz: float
    action_size: int
    render: dict[str, str]
    calibration_hash: str | None
    frames: int
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Labels:
    """What the replay of a run was filled with; in ``labels.json``, which is there once all of it is.

    Attributes:
        scale: turns the rewards of the replay into those that are learned from.
        digest: of the replay.
        episodes: path, steps, success and the sum of the video term of each.
    """

    task: str
    rate_hz: float
    action_size: int
    render: dict[str, str]
    frames: int
    scale: float
    digest: str
    episodes: list[dict[str, Any]]


def transitions(episode: Episode) -> tuple[Frames, NDArray[np.float32]]:
    """Frames (T + 1, H, W, 3) and the actions (T, A) between them, T ≥ 2.

    An action counts for the frame before it; one between two frames of which there are several is the newest, and
    where there is none the one before still holds, as it does on the robot. Frames before the first action and behind
    the one that follows the last are left out.

    Raises:
        BagError: no actions, too few steps, actions outside [-1, 1], or it is not known how the episode ended.
    """
    what = str(episode.path)
    if episode.metadata.outcome == "partial":
        raise _refused(what, "an episode that was closed as success, failure or aborted", "outcome partial")
    if not len(episode.actions):
        raise _refused(what, "recorded actions", "none")
    newest = np.searchsorted(episode.action_stamps_ns, episode.stamps_ns[1:], side="left") - 1  # (frames - 1,)
    first = int(np.searchsorted(newest, 0))
    last = int(np.searchsorted(newest, len(episode.actions) - 1))  # the first step with the last action
    steps = np.arange(first, min(last + 1, len(newest)))
    if len(steps) < FEWEST_STEPS:
        raise _refused(what, f"at least {FEWEST_STEPS} steps", str(len(steps)))
    actions = episode.actions[newest[steps]]
    if not np.isfinite(actions).all() or np.abs(actions).max() > 1.0 + BEYOND:
        raise _refused(what, "actions in [-1, 1]", f"up to {np.abs(actions).max():.3g}")
    return episode.frames[first : first + len(steps) + 1], np.clip(actions, -1.0, 1.0)


def survey(paths: Sequence[Path], rule: ImageRule, note: Callable[[str], None] = lambda text: None) -> DataSet:
    """Look through episodes: those that cannot be learned from are left out, each with a ``note``.

    Raises:
        BagError: none is left, or two differ in task, rate, camera or number of action values.
    """
    kept: list[Path] = []
    left_out: list[str] = []
    shared: dict[str, Any] = {}
    frames = 0
    for path in paths:
        try:
            episode = read_episode(path, rule=rule)
            pictures, actions = transitions(episode)
            if episode.metadata.rate_hz <= 0.0:
                raise _refused(str(path), "a known rate", "none")
        except BagError as error:
            left_out.append(str(error))
            note(f"left out: {error}")
            continue
        metadata = episode.metadata
        own = {"task": metadata.task, "rate_hz": float(metadata.rate_hz), "action_size": actions.shape[1]}
        own |= {"camera": metadata.camera, "render": metadata.render}
        own |= {"calibration_hash": metadata.calibration_hash}
        for key, value in own.items():
            if shared.setdefault(key, value) != value:
                expected = f"{key} {shared[key]}, as in {kept[0]}"
                raise BagError(str(path), expected=expected, found=str(value), next_step="give episodes that agree")
        kept.append(path)
        frames += len(pictures)
    if not kept:
        raise BagError(
            "episodes", expected="at least one that can be learned from", found=f"{len(left_out)} that cannot",
            next_step="give recordings of whole episodes with their actions",
        )  # fmt: skip
    del shared["camera"]
    return DataSet(tuple(kept), frames=frames, left_out=tuple(left_out), **shared)


def fill(replay: Replay, data: DataSet, rule: ImageRule, score: EpisodeReward | None) -> list[dict[str, Any]]:
    """Label the episodes of ``data`` and add them to an empty replay; what was added, an entry for each."""
    added = []
    for path in data.paths:
        episode = read_episode(path, rule=rule)
        frames, actions = transitions(episode)
        success = episode.metadata.outcome == "success"
        sparse = np.zeros(len(actions), np.float32)
        sparse[-1] = float(success)  # a recording ends at its success
        video = np.zeros_like(sparse) if score is None else score(frames[None])[0]
        # A success is the end: it is rewarded once, and what follows is worth 0. That is the same for every label: for
        # a learned one, whose zero is the expert and which is mostly negative, no way of going on is better than to
        # have finished. Other episodes were cut, by time or by hand, and what follows them is worth something.
        replay.add(frames, actions, {VIDEO: video, SPARSE: sparse}, terminal=success)
        added.append({"path": str(path), "steps": len(actions), "success": success, "video": float(video.sum())})
    return added


def reward_scale(episodes: Sequence[Mapping[str, Any]], *, success_weight: float, span: float) -> float:
    """What makes the returns of the episodes, and 0, which is what the end is worth, span ``span``.

    Raises:
        BagError: all returns are 0: there is nothing to learn.
    """
    returns = [episode["video"] + success_weight * episode["success"] for episode in episodes]
    found = max(0.0, *returns) - min(0.0, *returns)
    if found == 0.0:
        raise BagError(
            f"{len(returns)} episodes", expected="at least one with a reward", found="none",
            next_step="add successful episodes, or learn from a video model's reward",
        )  # fmt: skip
    return span / found


@contextmanager
def labelled(
    out: Path, data: DataSet | None, config: OfflineConfig, score: EpisodeReward | None
) -> Iterator[tuple[Replay, Labels]]:
    """The labelled replay of the run in ``out``, filled with ``data``; None: the one that a start before filled.

    Raises:
        BagError: there is no reward in ``data``.
        ReplayError: the replay is not the one that was labelled.
    """
    file = out / LABELS
    if data is not None:
        with _open(out, config, data) as replay:
            replay.rewind(0)  # a start that was killed may have left some
            episodes = fill(replay, data, config.image, score)
            scale = reward_scale(episodes, success_weight=config.success_weight, span=config.return_span)
            facts = (data.task, data.rate_hz, data.action_size, data.render, data.frames, scale, replay.digest())
        write_whole(file, json.dumps(asdict(Labels(*facts, episodes)), indent=1) + "\n")
    labels = Labels(**json.loads(file.read_text(encoding="utf-8")))
    with _open(out, config, labels) as replay:
        if replay.digest() != labels.digest:
            raise ReplayError(
                str(replay.directory),
                expected=f"the episodes that {LABELS} lists",
                found="others, or damaged ones",
                next_step="give another --out and train anew",
            )
        yield replay, labels


def _open(out: Path, config: OfflineConfig, data: DataSet | Labels) -> Replay:
    return Replay(
        out / "replay",
        capacity=data.frames,
        frame_shape=(config.image.size, config.image.size, 3),
        action_size=data.action_size,
        n_step=config.n_step,
        discount=config.discount,
        frame_stack=config.network.frame_stack,
        reward_names=(VIDEO, SPARSE),
    )


def _refused(what: str, expected: str, found: str) -> BagError:
    return BagError(what, expected=expected, found=found, next_step="record it again, or leave it out")
