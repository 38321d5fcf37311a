"""Exploration reward by random network distillation (arXiv 1810.12894): how new a frame is, ½‖f(o) - f̂(o)‖².

f is a random network that never changes, f̂ one that learns to predict it on the frames that were seen: what has been
seen often is predicted well. Scoring changes nothing; ``update`` does, so scores depend on all updates before.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dr_core.checkpoint import load_weights
from dr_core.codec.train import to_images
from dr_core.errors import CheckpointError, OutputInUseError
from dr_core.files import fsync
from dr_core.seeding import generator

FEATURES = 512
LEARNING_RATE = 1e-4
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class RandomNetworkDistillation(nn.Module):
    """Target, predictor, and running statistics of the scores.

    Args:
        seed: of both networks.
        learning_rate: of the predictor (Adam).
        standardise: scores minus their running mean, over their running deviation; the published method does not.

    Attributes:
        count, mean, spread: frames that ``update`` has seen, and the mean of their scores and the sum of squared
            distances from it, float64.
    """

    def __init__(
        self, seed: int = 0, *, learning_rate: float = LEARNING_RATE, standardise: bool = False, device: str = "cpu"
    ) -> None:
        super().__init__()
        self.standardise, self.device = standardise, torch.device(device)
        with torch.random.fork_rng(devices=[]):  # layers draw weights of their own at first
            self.target = _network(seed, "target", hidden=0).requires_grad_(False)
            self.predictor = _network(seed, "predictor", hidden=FEATURES)
        for name in ("count", "mean", "spread"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        self.count: Tensor
        self.mean: Tensor
        self.spread: Tensor
        self.to(self.device)
        self.optimizer = torch.optim.Adam(self.predictor.parameters(), learning_rate)

    @torch.no_grad()
    def score(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Novelty of frames (B, 64, 64, 3) uint8 → (B,) float32."""
        return self._standardised(self._novelty(frames))

    def update(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """One step of the predictor on frames (B, 64, 64, 3); returns their ``score`` (B,) before it."""
        novelty = self._novelty(frames)
        scores = self._standardised(novelty.detach())
        self._note(novelty.detach().double())
        self.optimizer.zero_grad(set_to_none=True)
        novelty.mean().backward()
        self.optimizer.step()
        return scores

    def save(self, path: Path) -> None:
        """Write networks, statistics and the optimiser's moments as safetensors; an existing file is refused."""
        if path.exists():
            raise OutputInUseError(
                str(path), expected="no such file yet", found="one", next_step="give another name, or remove it"
            )
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        for index, parameter in enumerate(self.predictor.parameters()):
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{index}.{moment}"] = value.detach().cpu().contiguous()
        temporary = path.with_name(f".{path.name}.writing")
        save_file(tensors, temporary)
        fsync(temporary)
        temporary.rename(path)

    def restore(self, path: Path) -> None:
        """Go on from what ``save`` wrote.

        Raises:
            CheckpointError: missing, no safetensors, or of another network.
        """
        try:
            tensors = load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(
                str(path),
                expected="an exploration network (safetensors)",
                found=" ".join(str(error).split()),
                next_step="give the file that was saved, or begin without",
            ) from error
        load_weights(self, {k: v for k, v in tensors.items() if not k.startswith("optimizer.")}, "", path)
        parameters = list(self.predictor.parameters())
        if not any(name.startswith("optimizer.") for name in tensors):
            return
        state: dict[int, dict[str, Tensor]] = {}
        for index, parameter in enumerate(parameters):
            moments = {moment: tensors.get(f"optimizer.{index}.{moment}") for moment in MOMENTS}
            for moment, value in moments.items():
                wanted = () if moment == "step" else tuple(parameter.shape)
                if value is None or tuple(value.shape) != wanted or not value.isfinite().all():
                    raise CheckpointError(
                        str(path),
                        expected=f"optimizer.{index}.{moment} of shape {wanted}",
                        found="none" if value is None else str(tuple(value.shape)),
                        next_step="give the file as it was saved",
                    )
            state[index] = {moment: value for moment, value in moments.items() if value is not None}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def _novelty(self, frames: NDArray[np.uint8]) -> Tensor:
        """(B, 64, 64, 3) → (B,)."""
        images = to_images(frames, self.device)  # (B, 3, 64, 64) in [-1, 1]
        with torch.no_grad():
            wanted = self.target(images)
        return 0.5 * (self.predictor(images) - wanted).square().sum(-1)

    def _standardised(self, novelty: Tensor) -> NDArray[np.float32]:
        if self.standardise:
            novelty = ((novelty.double() - self.mean) / self._deviation()).float()
        return novelty.cpu().numpy()

    def _note(self, novelty: Tensor) -> None:
        """Join the statistics of a batch (B,) with the running ones (Chan, Golub and LeVeque 1979)."""
        own, mean = len(novelty), novelty.mean()
        apart, count = mean - self.mean, self.count + own
        self.spread += (novelty - mean).square().sum() + apart.square() * self.count * own / count
        self.mean += apart * own / count
        self.count += own

    def _deviation(self) -> Tensor:
        return (self.spread / self.count.clamp(min=1)).sqrt().clamp(min=1e-8)


def _network(seed: int, name: str, hidden: int) -> nn.Sequential:
    """(B, 3, 64, 64) → (B, 512); orthogonal weights that depend on the seed and the name only."""
    layers: list[nn.Module] = [
        *(nn.Conv2d(3, 32, 8, 4), nn.LeakyReLU()),  # 15 × 15
        *(nn.Conv2d(32, 64, 4, 2), nn.LeakyReLU()),  # 6 × 6
        *(nn.Conv2d(64, 64, 3, 1), nn.LeakyReLU(), nn.Flatten()),  # 4 × 4
        nn.Linear(64 * 4 * 4, FEATURES),
    ]
    if hidden:
        layers += [nn.ReLU(), nn.Linear(FEATURES, hidden), nn.ReLU(), nn.Linear(hidden, FEATURES)]
    made = nn.Sequential(*layers)
    draws = generator(seed, "rnd", name)
    for parameter in made.parameters():
        with torch.no_grad():
            parameter.copy_(_orthogonal(parameter, draws) if parameter.ndim > 1 else torch.zeros_like(parameter))
    return made


def _orthogonal(like: Tensor, draws: torch.Generator) -> Tensor:
    """√2 times a matrix of orthonormal rows or columns, in the shape of ``like`` (out, in, ...)."""
    rows, columns = like.shape[0], like[0].numel()
    normal = torch.randn(max(rows, columns), min(rows, columns), generator=draws, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    q = q * r.diagonal().sign()
    return (math.sqrt(2) * (q if rows >= columns else q.T)).reshape(like.shape).float()
