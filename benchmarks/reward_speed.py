"""What a reward costs: the paper preset against the published evaluation, and the default preset's rates.

    python benchmarks/reward_speed.py                    # prints a table; about 5 minutes on 2 cores
    python benchmarks/reward_speed.py --out docs/img     # also speed.json and speed.png

Both sides of a row have the same random weights and inputs; they take turns, and the best of the turns counts, so
that other programs on the machine disturb both alike. The slow side is ``benchmarks/slow_reference.py`` in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from slow_reference import SlowDenoiser, SlowDiffusion, slow_reward

from dr_core.codec.train import to_images
from dr_core.codec.vqgan import VQGAN
from dr_core.diffusion.schedule import ScheduleConfig, mask_and_uniform
from dr_core.diffusion.train import history_indices
from dr_core.parity import filled_model
from dr_core.presets import PRESETS
from dr_core.rewards.model import Networks, RewardModel

FRAMES = 101
SALT = "open/"


@dataclass(frozen=True)
class Row:
    """One line of the table; times in ms, ``ratio`` = slow/ours, ``value`` instead where nothing is compared."""

    name: str
    slow_ms: float | None = None
    ours_ms: float | None = None
    ratio: float | None = None
    value: float | None = None
    unit: str = ""
    target: float | None = None
    at_most: bool = False
    """Whether ``target`` is a maximum."""

    @property
    def met(self) -> bool | None:
        """None without a target."""
        measured = self.value if self.ratio is None else self.ratio
        if self.target is None or measured is None:
            return None
        return measured <= self.target if self.at_most else measured >= self.target


def take_turns(repeat: int, contenders: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Best time of each in ms."""
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(repeat):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - started))
    return best


def moving_frames(count: int) -> NDArray[np.uint8]:
    """(count, 64, 64, 3) uint8: smooth random pictures that drift, every one different."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 12, 12)).astype(np.float32))
    wide = torch.nn.functional.interpolate(coarse, (64, 64 + count), mode="bicubic").clamp(0, 255)[0]
    pictures = np.stack([wide[:, :, k : k + 64].permute(1, 2, 0).numpy() for k in range(count)])
    return (pictures + rng.uniform(-4, 4, pictures.shape)).clip(0, 255).astype(np.uint8)


def paper_model(precision: str = "float32", codec_precision: str = "float32") -> RewardModel:
    """The paper preset with weights filled by rule."""
    networks = Networks(PRESETS["paper"]().model, 1)
    networks.codec, networks.diffusion, networks.video = filled_model(SALT)
    return as_model(PRESETS["paper"]().model, networks, precision=precision, codec_precision=codec_precision)


def default_model() -> RewardModel:
    """The default preset as it is before training."""
    torch.manual_seed(0)
    return as_model(PRESETS["default"]().model, Networks(PRESETS["default"]().model, 1))


def as_model(config: Any, networks: Networks, **precisions: Any) -> RewardModel:
    """A reward model that was never trained."""
    statistics = {config.estimator.name: {"none": {"mean": 0.0, "std": 1.0}}}
    return RewardModel(config, networks, {"tasks": ["none"], "statistics": statistics}, **precisions)


# ---- rows ----


def paper_rows(repeat: int) -> list[Row]:
    """The paper preset against the published evaluation."""
    exact, rounded = paper_model(), paper_model("bfloat16")
    codec, video = exact.networks.codec, exact.networks.video
    assert isinstance(codec, VQGAN)
    slow_codec = VQGAN(replace(codec.config, channels_last=False)).eval()
    slow_codec.load_state_dict(codec.state_dict())
    half = codec.rounded(torch.bfloat16)
    network = SlowDenoiser(video.to_published(), video.config.heads)
    process = SlowDiffusion(mask_and_uniform(ScheduleConfig(), codec.num_codes))

    frames = moving_frames(FRAMES)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(codec.num_codes, (FRAMES, 64), generator=generator).numpy()
    indices = history_indices(FRAMES, 2, 1, observed=False)
    histories = torch.from_numpy(tokens[indices].reshape(FRAMES, -1))
    uniforms = exact._common_noise(0)
    rows = []

    def compare(name: str, best: dict[str, float], ours: str, target: float | None, slow: str = "slow") -> None:
        rows.append(Row(name, best[slow], best[ours], best[slow] / best[ours], target=target))

    def score(model: RewardModel, clip: NDArray[np.int64], estimator: str = "paper") -> NDArray[np.float32]:
        return model.score_tokens([clip], estimator=estimator)[0].raw

    with torch.inference_mode():
        best = take_turns(
            repeat,
            {
                "slow": lambda: slow_reward(process, network, histories, uniforms),
                "float32": lambda: score(exact, tokens),
                "bfloat16": lambda: score(rounded, tokens),
                "one_pass": lambda: score(exact, tokens, "one_pass"),
            },
        )
        compare(f"paper, {FRAMES} frames, float32", best, "float32", 4)
        compare(f"paper, {FRAMES} frames, bfloat16", best, "bfloat16", 10)
        compare("one_pass over paper, float32", best, "one_pass", 9, slow="float32")

        one = tokens[:1]
        history = torch.from_numpy(np.concatenate([one, one], 1))
        best = take_turns(
            4 * repeat,
            {
                "slow": lambda: slow_reward(process, network, history, uniforms),
                "float32": lambda: score(exact, one),
                "bfloat16": lambda: score(rounded, one),
            },
        )
        compare("one step, video model, float32", best, "float32", 3)
        compare("one step, video model, bfloat16", best, "bfloat16", 3)

        pair = to_images(frames[:2], torch.device("cpu"))
        all_rounded = paper_model("bfloat16", "bfloat16")
        streams = [model.stream() for model in (exact, rounded, all_rounded)]
        count = 0

        def push(stream: Any) -> None:
            nonlocal count
            count += 1
            stream.push(frames[count % FRAMES], count)

        best = take_turns(
            2 * repeat,
            {
                "slow": lambda: slow_reward(process, network, slow_codec.encode(pair).view(1, -1), uniforms),
                "float32": lambda: push(streams[0]),
                "bfloat16": lambda: push(streams[1]),
                "all bfloat16": lambda: push(streams[2]),
            },
        )
        compare("stream step with encoder, float32", best, "float32", 3)
        compare("stream step with encoder, bfloat16 video model", best, "bfloat16", 3)
        compare("stream step with encoder, bfloat16 both", best, "all bfloat16", 3)

        images = to_images(frames[:32], torch.device("cpu"))
        best = take_turns(
            repeat,
            {
                "slow": lambda: slow_codec.encode(images),
                "float32": lambda: codec.encode(images),
                "bfloat16": lambda: half.encode(images),
            },
        )
        compare("encoder, 32 frames, float32", best, "float32", None)
        compare("encoder, 32 frames, bfloat16", best, "bfloat16", 3)
        flipped = float((codec.encode(images) != half.encode(images)).float().mean())
        rows.append(Row("codes that the bfloat16 encoder changes", value=100 * flipped, unit="%"))

        for estimator in ("paper", "one_pass"):
            want, got = score(exact, tokens, estimator), score(rounded, tokens, estimator)
            correlation = float(np.corrcoef(want, got)[0, 1])
            rows.append(
                Row(f"bfloat16 {estimator}: largest change", value=float(np.abs(want - got).max()), unit="nats")
            )
            rows.append(Row(f"bfloat16 {estimator}: spread over frames", value=float(want.std()), unit="nats"))
            rows.append(Row(f"bfloat16 {estimator}: correlation", value=correlation))
        slow, _ = slow_reward(process, network, histories[:8], uniforms)
        difference = np.abs(score(exact, tokens)[:8] / slow.numpy() - 1).max()
        rows.append(Row("float32 paper: largest relative error", value=float(difference), target=1e-4, at_most=True))
    return rows


def default_rows(repeat: int) -> list[Row]:
    """Rates of the default preset, the encoder included."""
    model, frames = default_model(), moving_frames(FRAMES)
    model.score(frames[None])
    batched = take_turns(3 * repeat, {"ours": lambda: model.score(frames[None])})["ours"]
    stream, times = model.stream(), []
    for index in range(4 * FRAMES):
        started = time.perf_counter()
        stream.push(frames[index % FRAMES], index)
        times.append(1e3 * (time.perf_counter() - started))
    times = times[FRAMES:]
    p50, p99 = np.percentile(times, [50, 99])
    return [
        Row("default, batched, with encoder", value=1e3 * FRAMES / batched, unit="frames/s", target=150),
        Row("default, streaming, with encoder", value=1e3 / float(np.mean(times)), unit="rewards/s", target=30),
        Row("default, streaming: p50", value=float(p50), unit="ms"),
        Row("default, streaming: p99", value=float(p99), unit="ms"),
    ]


def memory_rows(threads: int) -> list[Row]:
    """Peak memory of a process that loads a model and scores one episode."""
    cases = [("default", "float32", 1.0), ("paper", "float32", None), ("paper", "bfloat16", None)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for preset, precision, target in cases:
            path = Path(folder) / preset
            if not path.exists():
                (default_model() if preset == "default" else paper_model()).save(path)
            command = [sys.executable, __file__, "--threads", str(threads), "--memory", str(path), precision]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            name = f"{preset}, {FRAMES} frames, {precision}: peak memory"
            rows.append(Row(name, value=float(result.stdout), unit="GiB", target=target, at_most=True))
    return rows


def print_peak_memory(path: Path, precision: Any) -> None:
    """Load, score one episode, and say how much memory that took, in GiB."""
    model = RewardModel.load(path, precision=precision)
    model.score(moving_frames(FRAMES)[None])
    # Not getrusage, whose peak a child inherits from its parent.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 2**20)


# ---- output ----


def show(rows: list[Row], facts: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(title=", ".join(f"{key} {value}" for key, value in facts.items()))
    for title in ("", "slow reference", "ours", "ratio or value", "target", "met"):
        table.add_column(title, justify="left" if not title else "right")
    for row in rows:
        measured = f"{row.value:.3g} {row.unit}" if row.ratio is None else f"×{row.ratio:.2f}"
        times = ["" if ms is None else f"{ms:.1f} ms" for ms in (row.slow_ms, row.ours_ms)]
        target = "" if row.target is None else f"{'≤' if row.at_most else '≥'} {row.target:g}"
        table.add_row(row.name, *times, measured, target, {None: "", True: "yes", False: "no"}[row.met])
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def write(rows: list[Row], facts: dict[str, Any], folder: Path) -> None:
    """speed.json, and speed.png: the ratios as bars, the targets as marks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    result = {"machine": facts, "rows": [asdict(row) | {"met": row.met} for row in rows]}
    (folder / "speed.json").write_text(json.dumps(result, indent=1) + "\n")
    bars = [(row.name, row.ratio, row.target) for row in reversed(rows) if row.ratio is not None]
    figure, axes = plt.subplots(figsize=(8, 0.34 * len(bars) + 0.9), layout="constrained")
    axes.barh([name for name, _, _ in bars], [ratio for _, ratio, _ in bars], color="#4477aa", height=0.6)
    for place, (_, ratio, target) in enumerate(bars):
        axes.text(ratio + 0.05, place, f"×{ratio:.1f}", va="center", fontsize=8)
        if target is not None:
            axes.plot([target, target], [place - 0.35, place + 0.35], color="#cc3311", linewidth=2)
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set_xlabel("times as fast as the slow reference (red: target)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "speed.png", dpi=110)


def cpu_name() -> str:
    """Model name, and whether it multiplies bfloat16 natively."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    native = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in info.split()]
    return f"{names[0] if names else platform.processor()} ({', '.join(native) or 'no native bfloat16'})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="directory for speed.json and speed.png")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of torch")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)  # the child process of memory_rows
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        print_peak_memory(Path(options.memory[0]), options.memory[1])
        return
    rows = [*paper_rows(options.repeat), *default_rows(options.repeat), *memory_rows(options.threads)]
    facts = {"CPU": cpu_name(), "threads": options.threads, "torch": torch.__version__}
    show(rows, facts)
    if options.out:
        write(rows, facts, options.out)


if __name__ == "__main__":
    main()
