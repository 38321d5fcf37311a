"""Scripted and trained experts, and the dilution of an expert by random actions."""

from __future__ import annotations

import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dr_core.agent.pushing import push_action
from dr_core.errors import ConfigError, UserError

BLOCK_STEPS = 20


class Expert(Protocol):
    """Maps an environment's `expert_observation` to an action in [-1, 1]."""

    def __call__(self, observation: NDArray[np.float64]) -> NDArray[np.float32]: ...


class ScriptedExpert:
    """Meta-World's hand-written policy of a task, clipped to [-1, 1].

    Args:
        task: resolved name, for example "door-close".
    """

    def __init__(self, task: str) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        policies: dict[str, Any] = dict(ENV_POLICY_MAP)
        self._policy = policies[f"{task}-v3"]()

    def __call__(self, observation: NDArray[np.float64]) -> NDArray[np.float32]:
        """Observation (39,) with the goal -> action (4,)."""
        with warnings.catch_warnings():
            # Meta-World warns that its own constants exceed the range that is clipped here.
            warnings.simplefilter("ignore")
            action = self._policy.get_action(observation)
        return np.clip(np.asarray(action, dtype=np.float32), -1.0, 1.0)


class PushExpert:
    """The expert of the live agent, `dr_core.agent.pushing`, on the observations of `PandaEnv`."""

    def __call__(self, observation: NDArray[np.float64]) -> NDArray[np.float32]:
        """Observation (9,), positions of tool, block and goal -> action (3,)."""
        return push_action(observation[:3], observation[3:6], observation[6:9]).astype(np.float32)


MAX_WEIGHTS_BYTES = 64 << 20
"""Of all the arrays of an expert's file, unpacked; a network with two hidden layers of 64 takes 0.1 MB."""


class AdroitExpert:
    """Deterministic tanh network, its actions clipped to [-1, 1].

    action = (w2 tanh(w1 tanh(w0 x + b0) + b1) + b2) * out_scale + out_shift,
    x = (observation - in_shift) / (in_scale + 1e-8).

    Args:
        path: .npz with arrays w0, b0, w1, b1, w2, b2 (weights (out, in)), in_shift, in_scale (O,), out_shift,
            out_scale (A,). Pickled arrays are refused.

    Raises: UserError: the file is no such archive, an array is missing, or shapes do not fit.
    """

    ARRAYS = ("w0", "b0", "w1", "b1", "w2", "b2", "in_shift", "in_scale", "out_shift", "out_scale")

    def __init__(self, path: Path) -> None:
        try:
            if not zipfile.is_zipfile(path):  # np.load reads other formats as well
                raise ValueError("no archive")
            with zipfile.ZipFile(path) as members:
                if sum(member.file_size for member in members.infolist()) > MAX_WEIGHTS_BYTES:
                    raise ValueError(f"more than {MAX_WEIGHTS_BYTES} bytes of arrays")
            with np.load(path, allow_pickle=False) as archive:
                missing = [name for name in self.ARRAYS if name not in archive.files]
                arrays = {name: archive[name].astype(np.float32) for name in archive.files if name in self.ARRAYS}
        # A damaged archive surprises its reader in many ways; none of them runs code.
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, SyntaxError, LookupError, TypeError,
                AttributeError, RuntimeError, OverflowError, MemoryError, tokenize.TokenError) as error:  # fmt: skip
            raise self._error(path, f"an unreadable file ({' '.join(str(error).split()):.120})") from error
        if missing:
            raise self._error(path, f"no {', '.join(missing)}")
        sizes = [arrays["in_shift"].size] + [arrays[f"b{i}"].size for i in range(3)]
        shapes: dict[str, tuple[int, ...]] = {f"w{i}": (sizes[i + 1], sizes[i]) for i in range(3)}
        shapes |= {f"b{i}": (sizes[i + 1],) for i in range(3)}
        shapes |= {"in_shift": (sizes[0],), "in_scale": (sizes[0],)}
        shapes |= {"out_shift": (sizes[3],), "out_scale": (sizes[3],)}
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise self._error(path, f"{name} of shape {arrays[name].shape} instead of {shape}")
        self._arrays = arrays

    @staticmethod
    def _error(path: Path, found: str) -> UserError:
        return UserError(
            str(path),
            expected=f"an .npz archive with {', '.join(AdroitExpert.ARRAYS)}",
            found=found,
            next_step="give the directory of the right weights as --adroit-weights",
        )

    def __call__(self, observation: NDArray[np.float64]) -> NDArray[np.float32]:
        """Observation (O,) -> action (A,)."""
        a = self._arrays
        x = (observation.astype(np.float32) - a["in_shift"]) / (a["in_scale"] + 1e-8)
        hidden = np.tanh(a["w1"] @ np.tanh(a["w0"] @ x + a["b0"]) + a["b1"])
        action = (a["w2"] @ hidden + a["b2"]) * a["out_scale"] + a["out_shift"]
        return np.clip(action, -1.0, 1.0).astype(np.float32)


class MixedPolicy:
    """An expert some of whose agent steps are replaced by a uniform random action in [-1, 1].

    Every step is random with probability `quality / 100`. The random steps are drawn without replacement in
    blocks of 20, so that each whole block holds that share exactly where it is a whole number of steps (a
    multiple of 5 per cent) and by randomised rounding otherwise: an episode's share is right, not only its
    expectation. `quality` 0 is the pure expert, 100 pure noise.

    Args:
        expert: the policy that is diluted.
        quality: per cent of random steps, 0 to 100.
        action_size: length A of an action.
        rng: source of the random steps; one generator an episode makes episodes independent of their order.
    """

    def __init__(self, expert: Expert, quality: float, action_size: int, rng: np.random.Generator) -> None:
        if not 0 <= quality <= 100:
            raise ConfigError("quality", expected="per cent from 0 to 100", found=str(quality), next_step="change it")
        self._expert = expert
        self._quality = quality
        self._action_size = action_size
        self._rng = rng
        self._block: list[bool] = []

    def __call__(self, observation: NDArray[np.float64]) -> NDArray[np.float32]:
        """Observation of the expert -> action (A,)."""
        if not self._block:
            share = self._quality / 100 * BLOCK_STEPS
            count = int(share) + int(self._rng.random() < share - int(share))
            self._block = list(self._rng.permutation(BLOCK_STEPS) < count)
        if self._block.pop():
            return self._rng.uniform(-1.0, 1.0, self._action_size).astype(np.float32)
        return self._expert(observation)
