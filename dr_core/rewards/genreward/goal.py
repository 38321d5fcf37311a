"""What an agent of GenReward is to reach: a goal video and one goal frame of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dr_core.data.episodes import find_episodes, read_episode, read_metadata
from dr_core.data.images import decode_compressed
from dr_core.data.video import VIDEO_SUFFIXES, iterate_video
from dr_core.errors import BagError, ConfigError
from dr_core.rewards.genreward.encoders import FrameEncoder, TextMatcher
from dr_core.rewards.genreward.video import cosine
from dr_core.rewards.model import RewardModel

Frames = NDArray[np.uint8]
FEWEST_FRAMES = 2
UNFAMILIAR = 1.0
"""Median out-of-distribution score of its frames above which a goal is refused; see ``Familiarity.ood``."""


@dataclass(frozen=True)
class Goal:
    """A goal video.

    Attributes:
        frames: (T, S, S, 3) uint8 RGB, as the reward model's image rule makes them.
        index: of the goal frame.
        chosen_by: how the goal frame was chosen.
        source: where the video is from.
    """

    frames: Frames
    index: int
    chosen_by: str
    source: str

    @property
    def frame(self) -> Frames:
        """The goal frame (S, S, 3)."""
        return self.frames[self.index]

    @property
    def sha256(self) -> str:
        """Of the frames and of which one is the goal; a training goes on only with the same ones."""
        digest = hashlib.sha256(f"{self.frames.shape} {self.index}\n".encode())
        digest.update(np.ascontiguousarray(self.frames).data)
        return digest.hexdigest()


def read_goal(path: Path, model: RewardModel, *, task: str | None = None, unfamiliar: bool = False) -> Frames:
    """The frames of a goal video: a video file, a bag, or a directory that holds one, or one of the task.

    Larger pictures are reduced by the image rule of the model, as its training pictures were. Its frame rate and length
    do not matter, as clips are compared by a fixed number of frames.

    Args:
        model: whose pictures it should resemble.
        task: which of the model's tasks they should look like; None, or another: any.
        unfamiliar: take it even if they do not.

    Raises:
        BagError: nothing there, none or several of the task, a damaged one, or frames of another aspect.
        ConfigError: too short, too small, or unlike what the model was trained on.
    """
    path = _one_of(path, task)
    refuse_small(path, model.config.image.size)
    frames = read_episode(path, rule=model.config.image).frames
    if len(frames) < FEWEST_FRAMES:
        raise ConfigError(
            str(path), expected=f"a goal video of at least {FEWEST_FRAMES} frames", found=str(len(frames)),
            next_step="give a longer one",
        )  # fmt: skip
    if not unfamiliar:
        refuse_unfamiliar(frames, model, task, str(path))
    return frames


def goal_of_experts(
    paths: tuple[Path, ...], model: RewardModel, task: str, *, unfamiliar: bool = False
) -> tuple[Frames, Path]:
    """The first successful episode of the task among those at ``paths``, by name; its frames and where it is.

    Raises:
        ConfigError: there is none, or as :func:`read_goal`.
    """
    for path in find_episodes(paths):
        metadata = read_metadata(path)
        if metadata.outcome == "success" and _same_task(metadata.task, task):
            return read_goal(path, model, task=task, unfamiliar=unfamiliar), path
    raise ConfigError(
        "--experts", expected=f"a successful episode of {task}", found="none", next_step="give --goal FILE_OR_BAG"
    )


def _one_of(path: Path, task: str | None) -> Path:
    """The one episode at or below ``path``; of several, the one that is named after the task, or recorded of it."""
    episodes = find_episodes([path])
    if len(episodes) > 1 and task is not None:
        named = [one for one in episodes if _same_task(one.stem, task)]
        episodes = named or [one for one in episodes if _same_task(read_metadata(one).task, task)]
    if len(episodes) != 1:
        raise BagError(
            str(path), expected="one goal video" if task is None else f"one goal video of {task}",
            found=f"{len(episodes)} episodes", next_step="name one of them",
        )  # fmt: skip
    return episodes[0]


def _same_task(one: str, other: str) -> bool:
    return one.removesuffix("-v3") == other.removesuffix("-v3")


def refuse_small(path: Path, size: int) -> None:
    """Refuse a video file whose pictures are smaller than the model's: enlarged they look like nothing it has seen."""
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return
    for frame, _ in iterate_video(path):
        if min(frame.shape[:2]) < size:
            raise ConfigError(
                str(path), expected=f"pictures of at least {size} x {size}, the model's",
                found=f"{frame.shape[1]} x {frame.shape[0]}", next_step="give a larger video",
            )  # fmt: skip
        return


@torch.inference_mode()
def familiarity(frames: Frames, model: RewardModel, task: str | None) -> float:
    """Median out-of-distribution score of frames (T, S, S, 3); NaN where the model cannot tell."""
    known = model.tasks.index(task) if task in model.tasks else None
    tokens = torch.from_numpy(model.tokenize(frames)).to(model.device)
    return float(model.networks.familiarity.ood(tokens, known).median())


def refuse_unfamiliar(frames: Frames, model: RewardModel, task: str | None, what: str) -> None:
    """Refuse a goal of another camera or scene, where the model can tell.

    Raises:
        ConfigError: most of its frames look like hardly any training picture.
    """
    score = familiarity(frames, model, task)
    if score > UNFAMILIAR:  # not when it is NaN
        raise ConfigError(
            what,
            expected="a goal video that looks like the pictures the reward model was trained on (score up to 1)",
            found=f"out-of-distribution score {score:.2f}",
            next_step="record it with the model's camera and scene, or insist with --goal-unfamiliar",
        )


# ---- the goal frame ----


def choose_frame(frames: Frames, choice: str) -> tuple[int, str]:
    """The goal frame that ``last`` or a number, counted from 0, names, and how it was chosen.

    Raises:
        ConfigError: neither, or no such frame.
    """
    if choice == "last":
        return len(frames) - 1, "last"
    if not (choice.isascii() and choice.isdigit()) or int(choice) >= len(frames):
        raise ConfigError(
            "--goal-frame", expected=f"last, or a number from 0 to {len(frames) - 1}", found=repr(choice),
            next_step="correct it",
        )  # fmt: skip
    return int(choice), "index"


def most_like_picture(frames: Frames, picture: Frames, encoder: FrameEncoder) -> tuple[int, str]:
    """The frame of (T, S, S, 3) whose feature has the largest cosine with that of a picture (S, S, 3).

    The mean feature of the frames is subtracted from both: what all of them share says nothing.
    """
    features = encoder.encode(frames)
    mean = features.mean(0)
    wanted = encoder.encode(picture[None])[0] - mean
    return int(np.argmax([cosine(feature - mean, wanted) for feature in features])), f"picture, by {encoder.name}"


def most_like_text(frames: Frames, text: str, matcher: TextMatcher) -> tuple[int, str]:
    """The frame that a text describes best.

    Raises:
        ConfigError: no text.
    """
    require_text(text)
    return int(np.argmax(matcher.similarity(text, frames))), f"text {text!r}"


def require_text(text: str) -> None:
    """Refuse an empty text.

    Raises:
        ConfigError: there are blanks in it, at most.
    """
    if not text.strip():
        raise ConfigError("goal text", expected="a text", found="none", next_step="say what the goal looks like")


def read_picture(path: Path, model: RewardModel) -> Frames:
    """A JPEG or PNG as the model sees it, (S, S, 3).

    Raises:
        ConfigError: it cannot be read.
        BagError: not a whole picture, or one of another aspect.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            str(path), expected="a picture", found=error.strerror or "nothing", next_step="correct the path"
        ) from error
    return model.config.image.apply(decode_compressed(data, "png"))
