"""Commands that train agents without a simulator. Heavy imports happen inside `run`, so that help stays quick."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from dr_core.errors import BagError, ConfigError

if TYPE_CHECKING:
    from dr_core.agent.offline import DataSet, OfflineConfig
    from dr_core.rewards.online import EpisodeReward


@dataclass(frozen=True)
class TrainOffline:
    """Train an agent (IQL) from recorded episodes of mixed quality, without a robot or a simulator.

    The episodes are labelled once with the reward and kept in OUT/replay; OUT/labels.json lists them. Curves are in
    metrics.jsonl and TensorBoard, the agent in OUT/agent. Ctrl-C ends after the running update; --resume goes on
    exactly as if nothing had happened.
    """

    episodes: tyro.conf.Positional[tuple[Path, ...]]
    """Bags of one task with their actions, good and bad ones, or directories of them."""
    out: Path
    """Directory of the run."""
    reward: Literal["sparse", "default", "diffusion_reward", "likelihood", "viper", "viper_std"] = "default"
    """What the episodes are labelled with; success is added to each."""
    model: Path | None = None
    """Reward model (RUN/model), for all but sparse."""
    viper: Path | None = None
    """VIPER model, for viper and viper_std."""
    preset: Literal["default", "paper"] = "default"
    """Settings to start from: for a processor with a few cores, or the published ones."""
    steps: int | None = None
    """Updates; left out: those of the preset."""
    seed: int = 0
    """Of weights and batches."""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Single overrides, for example --set expectile=0.9 n_step=1 network.hidden_size=512."""
    resume: bool = False
    """Continue a run that was stopped or killed."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    def run(self) -> int:
        """Label and train; exit status 0 when the agent is written."""
        from dr_core.agent.actor import ActorConfig
        from dr_core.agent.offline import IQL, LABELS, PRESETS, OfflineStage, labelled, survey
        from dr_core.config import override, parse_set, to_mapping
        from dr_core.data.episodes import find_episodes
        from dr_core.files import keep_settings, run_directory
        from dr_core.seeding import choose_device
        from dr_core.training import Metrics, train

        chosen = {"reward": self.reward, "seed": self.seed}
        chosen |= {} if self.steps is None else {"steps": self.steps}
        config = override(PRESETS[self.preset], chosen)
        for text in itertools.chain(*self.set):
            config = override(config, parse_set(text))
        device = choose_device(self.device)
        sources = {"episodes": list(map(str, self.episodes)), "model": str(self.model), "viper": str(self.viper)}
        # What can be refused is refused before the run's directory is made; what is labelled is not read again.
        known = (self.out / LABELS).exists()
        data = None if known else survey(find_episodes(self.episodes), config.image, print)
        score = None if data is None else self.scorer(data, config, device)
        with run_directory(self.out, resume=self.resume):
            keep_settings(
                self.out / "config.yaml", {**to_mapping(config), **sources}, "other episodes, another model or setting"
            )
            with labelled(self.out, data, config, score) as (replay, labels):
                succeeded = sum(episode["success"] for episode in labels.episodes)
                print(
                    f"{len(labels.episodes)} episodes of {labels.task}, {succeeded} successful, {len(replay)} steps; "
                    f"rewards are scaled by {labels.scale:.3g}"
                )
                actor = ActorConfig(labels.action_size, labels.task, labels.rate_hz, config.image, config.network)
                agent = IQL(actor, config, device)
                metrics = Metrics(self.out)
                try:
                    train(OfflineStage(agent, replay, labels.scale), self.out, metrics)
                finally:
                    metrics.close()
            if not (self.out / "agent").exists():
                agent.actor.save(self.out / "agent", render=labels.render, reward=config.reward, offline=True)
        print(f"agent: {self.out / 'agent'}")
        return 0

    def scorer(self, data: DataSet, config: OfflineConfig, device: str) -> EpisodeReward | None:
        """What labels the episodes; refuses a reward model of another camera or crop."""
        from dr_core.checkpoint import load_checkpoint
        from dr_core.config import to_mapping
        from dr_core.rewards.online import video_reward
        from dr_core.rewards.view import check_calibration, check_view

        score = video_reward(config.reward, data.task, model=self.model, viper=self.viper, device=device)
        if score is None or self.model is None:
            return None
        checkpoint = load_checkpoint(self.model)
        next_step = "give the model of this camera, or train one"
        first, manifest = str(data.paths[0]), checkpoint.manifest
        check_view(first, data.render, manifest, next_step=next_step, error=BagError)
        check_calibration(first, data.calibration_hash, manifest, next_step=next_step, error=BagError)
        rule = to_mapping(config.image)
        if checkpoint.config.get("image", rule) != rule:
            raise ConfigError(
                "image",
                expected=f"as the reward model's: {checkpoint.config['image']}",
                found=str(rule),
                next_step="--set image.size=... image.crop=...",
            )
        return score
