"""Commands ``dr goal-video`` and ``dr finetune-goal``. Heavy imports happen inside `run`, so that help stays quick."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from dr_core.errors import ConfigError, OutputInUseError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dr_core.data.images import ImageRule

    Made = tuple[dict[str, Any], Callable[[], NDArray[np.uint8]], float]
    """What decides a video, what makes it, and its frames per second."""


@dataclass(frozen=True)
class GoalVideo:
    """Make a goal video: of a recording, by a local image-to-video pipeline, or imagined by a reward model.

    OUT gets video.mp4 (lossless), provenance.json, and with --text or --frame also goal_frame.png. Give one of: a
    recording; --generator with --prompt and --first-frame; --imagine with --model and --first-frame.
    """

    out: Path
    """New directory of the result."""
    recording: tyro.conf.Positional[Path | None] = None
    """A video or bag that shows the task done, to be taken as it is (cut square)."""
    generator: Path | None = None
    """Directory of a CogVideoX image-to-video pipeline."""
    prompt: str = ""
    """What is done, in words, for --generator."""
    first_frame: Path | None = None
    """How the task begins: a picture (PNG, JPEG), or an episode, whose first frame is taken."""
    lora: Path | None = None
    """Adapter of dr finetune-goal, or another one of diffusers, for --generator."""
    imagine: bool = False
    """Let the reward model of --model go on from the first frame."""
    model: Path | None = None
    """Reward model (RUN/model), for --imagine."""
    first_frames: int = 1
    """How many frames of an episode --imagine is given; more of them tell the direction."""
    num_frames: int = 0
    """Frames of a generated or imagined video; 0: what the pipeline is made for, or 50 imagined ones."""
    steps: int = 50
    """Denoising steps of --generator."""
    guidance: float = 6.0
    """Weight of the prompt, from 1 (none)."""
    rate_hz: float = 0.0
    """Frames per second of the result; 0: those of the recording, of the model's task, or 8 generated ones."""
    seed: int = 0
    """Of what is drawn."""
    text: str = ""
    """Choose the goal frame: the one that this text describes best, by --clip."""
    clip: Path | None = None
    """Directory of a CLIPModel with its tokenizer and preprocessor, for --text."""
    frame: str = ""
    """Choose the goal frame: last, or a number from 0."""
    size: int = 0
    """Edge of the square frames in pixels; 0: as the recording or the first frame. Imagined ones: the model's."""
    crop: str = ""
    """How frames become square: none (they have to be), center, or x,y,width,height."""
    cache: Path = Path("runs/goal_cache")
    """Where generated and imagined videos are kept, by what they were made from."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    def run(self) -> int:
        """Make the video; exit status 0 when it is written."""
        from dr_core.goals.cache import GoalVideo as Result
        from dr_core.goals.cache import cached_goal, write_goal
        from dr_core.seeding import choose_device

        self._check()
        if self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir())):
            raise OutputInUseError(
                str(self.out), expected="a new or empty directory", found="files", next_step="give another --out"
            )
        device = choose_device(self.device)
        # What can be refused is refused before a video is made.
        choose = self._chooser(device)
        made_from, make, rate_hz = self._maker(device)
        rate_hz = self.rate_hz or rate_hz
        if self.recording is None:
            goal = cached_goal(self.cache, made_from, make, rate_hz, print)
        else:
            goal = Result(make(), rate_hz, {"made_from": {**made_from, "rate_hz": rate_hz}})
        chosen = choose(goal.frames)
        decides = goal.provenance["made_from"]
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_goal(self.out, goal.frames, rate_hz, decides, chosen)
        frames, height, width, _ = goal.frames.shape
        print(f"goal video: {self.out}, {frames} frames of {width} x {height} at {rate_hz:g} Hz")
        if chosen is not None:
            print(f"goal frame: {chosen[0]}, chosen by {chosen[1]}")
        return 0

    def _check(self) -> None:
        """Refuse options that do not go together."""
        ways = {"a recording": self.recording, "--generator": self.generator, "--imagine": self.imagine or None}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            raise ConfigError(
                "dr goal-video",
                expected="one of a recording, --generator DIR, --imagine",
                found=" and ".join(given) or "none",
                next_step="give one of them; dr goal-video --help explains",
            )
        needs = {
            "a recording": (),
            "--generator": (("--first-frame", self.first_frame), ("--prompt", self.prompt.strip() or None)),
            "--imagine": (("--first-frame", self.first_frame), ("--model", self.model)),
        }
        missing = [name for name, value in needs[given[0]] if value is None]
        if self.text.strip() and self.clip is None:
            missing.append("--clip")
        if missing:
            raise ConfigError(
                f"{given[0]} {'with --text' if missing == ['--clip'] else ''}".strip(),
                expected=" and ".join(missing),
                found="none",
                next_step="give it",
            )
        if self.text.strip() and self.frame:
            raise ConfigError("--text", expected="either it or --frame", found="both", next_step="leave one out")
        if self.clip is not None and not self.text.strip():
            raise ConfigError("--clip", expected="--text", found="no text", next_step="say what the goal looks like")
        if self.size and not 8 <= self.size <= 4096:
            raise ConfigError("--size", expected="8 to 4096 pixels", found=str(self.size), next_step="correct it")
        if self.first_frames < 1:
            raise ConfigError(
                "--first-frames", expected="at least 1", found=str(self.first_frames), next_step="correct it"
            )
        if not 0 <= self.rate_hz <= 1000:
            raise ConfigError("--rate-hz", expected="0 to 1000", found=str(self.rate_hz), next_step="correct it")

    def _chooser(self, device: str) -> Callable[[NDArray[np.uint8]], tuple[int, str] | None]:
        """Frames → which one is the goal and how it was chosen, or None."""
        from dr_core.rewards.genreward.goal import choose_frame, most_like_text

        if self.clip is not None:
            from dr_core.goals.encoders import ClipMatcher

            matcher = ClipMatcher(self.clip, device)

            def by_text(frames: NDArray[np.uint8]) -> tuple[int, str]:
                index, how = most_like_text(frames, self.text, matcher)
                return index, f"{how} by {matcher.name}"

            return by_text
        return lambda frames: choose_frame(frames, self.frame) if self.frame else None

    def _maker(self, device: str) -> Made:
        if self.recording is not None:
            return self._recorded(self.recording)
        assert self.first_frame is not None
        if self.generator is not None:
            return self._generated(self.generator, self.first_frame, device)
        assert self.model is not None
        return self._imagined(self.model, self.first_frame, device)

    def _rule(self, source: Path) -> ImageRule:
        """How the frames of a source become square."""
        from dr_core.data.images import ImageRule
        from dr_core.goals.videos import own_edge

        rule = ImageRule().with_crop(self.crop)
        return ImageRule(self.size or own_edge(source, rule), rule.crop)

    def _recorded(self, recording: Path) -> Made:
        from dr_core.goals.cache import sha256_array
        from dr_core.goals.videos import read_clip

        frames, rate_hz = read_clip(recording, self._rule(recording))
        made_from = {"way": "recording", "source": str(recording), "frames_sha256": sha256_array(frames)}
        return made_from, lambda: frames, rate_hz

    def _generated(self, generator: Path, first_frame: Path, device: str) -> Made:
        from dr_core.config import to_mapping
        from dr_core.goals.cache import sha256_array, versions
        from dr_core.goals.generate import Generation, GoalGenerator
        from dr_core.goals.videos import read_first_frames

        try:
            settings = Generation(self.num_frames, self.steps, self.guidance)
        except ValueError as error:
            raise ConfigError(
                "--num-frames, --steps, --guidance", expected="usable ones", found=str(error), next_step="correct them"
            ) from error
        frame = read_first_frames(first_frame, 1, self._rule(first_frame))[0][0]
        maker = GoalGenerator(generator, lora=self.lora, device=device)
        maker.tokens(self.prompt)
        made_from = {
            "way": "generated",
            "first_frame_sha256": sha256_array(frame),
            "prompt": self.prompt,
            "seed": self.seed,
            "settings": {**to_mapping(settings), "num_frames": maker.num_frames(settings.num_frames)},
            "model_files": maker.hashes,
            "device": maker.device.type,
            "precision": maker.precision,
            "versions": versions("diffusers", "transformers", "peft", "sentencepiece"),
        }

        def make() -> NDArray[np.uint8]:
            from rich.console import Console
            from rich.progress import Progress

            with Progress(console=Console(stderr=True), transient=True) as progress:
                bar = progress.add_task("generate", total=self.steps)
                return maker.generate(
                    frame, self.prompt, settings, self.seed, lambda done, total: progress.update(bar, completed=done)
                )

        return made_from, make, 8.0

    def _imagined(self, model_path: Path, first_frame: Path, device: str) -> Made:
        from dr_core.errors import BagError
        from dr_core.goals.cache import sha256_array, versions
        from dr_core.goals.imagine import imagine
        from dr_core.goals.videos import read_first_frames
        from dr_core.rewards.model import RewardModel
        from dr_core.rewards.view import check_view

        model = RewardModel.load(model_path, device)
        frames, render = read_first_frames(first_frame, self.first_frames, model.config.image.with_crop(self.crop))
        if render is not None:
            next_step = "give a first frame of the model's camera"
            check_view(str(first_frame), render, model.manifest, next_step=next_step, error=BagError)
        count = self.num_frames or 50
        if count <= len(frames):
            raise ConfigError(
                "--num-frames", expected=f"more than the {len(frames)} given", found=str(count), next_step="raise it"
            )
        made_from = {
            "way": "imagined",
            "first_frames_sha256": sha256_array(frames),
            "seed": self.seed,
            "num_frames": count,
            "model_files": {"model.safetensors": model.model_hash},
            "device": model.device.type,
            "versions": versions(),
        }
        return made_from, lambda: imagine(model, frames, count, self.seed), model.frame_rate_hz() or 10.0


@dataclass(frozen=True)
class FinetuneGoal:
    """Fine-tune a local image-to-video pipeline (LoRA) on expert episodes, for goal videos that look like them.

    The adapter is OUT/lora.safetensors, for dr goal-video --generator DIR --lora; OUT/report.json holds the losses
    before and after. Ctrl-C ends after the running step; --resume goes on exactly as if nothing had happened.
    """

    experts: tyro.conf.Positional[tuple[Path, ...]]
    """Expert episodes: bags, video files, or directories of them."""
    generator: Path
    """Directory of a CogVideoX image-to-video pipeline."""
    out: Path
    """Directory of the run."""
    prompt: str | None = None
    """What is done, in words; left out: the task that each episode names, "door-close" as "door close"."""
    validation: tuple[Path, ...] = ()
    """Further episodes for the losses before and after; left out: those of training."""
    crop: str = ""
    """How frames become square: none (they have to be), center, or x,y,width,height."""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Single settings, for example --set steps=500 rank=32 learning_rate=2e-4 recompute=true seed=1."""
    resume: bool = False
    """Continue a run that was stopped or killed."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    def run(self) -> int:
        """Train; exit status 0 when the adapter is written."""
        from dr_core.config import override, parse_set
        from dr_core.goals.finetune import GoalTuning, finetune_goal
        from dr_core.seeding import choose_device

        config = GoalTuning()
        for text in itertools.chain(*self.set):
            config = override(config, parse_set(text))
        finetune_goal(
            self.generator,
            self.experts,
            self.out,
            config,
            prompt=self.prompt,
            validation=self.validation,
            crop=self.crop,
            resume=self.resume,
            device=choose_device(self.device),
        )
        return 0
