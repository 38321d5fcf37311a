"""One training run in several processes, on several GPUs or machines, started by torchrun.

Every process draws the whole batch of a step, as a run of one process does, and works on its own rows of it; gradients
and logged values are averaged. So the numbers are those of one process at the same batch size, up to the order of the
float sums. Rank 0 alone writes files. A process that ends, however it ends, ends the others, which say why.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dr_core.errors import UserError

BEAT_S = 0.5
"""Between two signs of life of a process."""
SILENT_S = 4.0
"""Without a sign of life, once an exchange has failed: this is the process that is gone."""
LOST_S = 30.0
"""Without a sign of life, although nothing has failed yet (frozen, or its network is cut)."""
GRACE_S = 10.0
"""For the main thread to end by itself after that; it may hang in an exchange that will never be answered."""
MEETING = timedelta(minutes=5)
PATIENCE = timedelta(days=7)
"""Of an exchange. Rank 0 may read recordings for hours; who is gone is found by the signs of life, not by this."""


class LostProcessError(UserError):
    """Another process of the run has ended or is not heard any more."""


class Team:
    """The processes of one run, as its parts see them; this one is alone and exchanges nothing."""

    rank = 0
    size = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files, curves and progress."""
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """Which rows of a batch this process works on."""
        return slice(self.rank * batch // self.size, (self.rank + 1) * batch // self.size)

    def take_device(self, name: str) -> str:
        """The torch device of this process for what the user calls ``name`` (cpu or cuda).

        Raises:
            UserError: there is none for it, or the processes have devices of different kinds.
        """
        return name

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make gradients those of the whole batch."""

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the processes; no gradient passes."""
        return value

    def means(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``mean`` of scalars on one device, in one exchange."""
        return dict(values)

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the processes; no gradient passes."""
        return value

    def part(self, rows: Tensor, total: int) -> Tensor:
        """What ``rows`` add to the mean over the ``total`` rows of all processes, (): its ``mean`` is that mean."""
        return rows.mean()

    def dropout(self, batch: int) -> AbstractContextManager[object]:
        """Inside, F.dropout of the own rows drops what it would drop of these rows in the whole batch."""
        return nullcontext()

    def share_batch_norm(self, module: nn.Module) -> None:
        """Make the batch norms in ``module`` use the statistics of the whole batch."""

    def agree_to_stop(self, flag: bool) -> bool:
        """Whether one of the processes was asked to stop; all get the same answer."""
        return flag

    def wait(self) -> None:
        """Until all are here."""

    def from_first(self, function: Callable[[], int]) -> int:
        """What ``function`` returns on rank 0; the others do not call it."""
        return function()

    def require_same(self, what: str, value: Callable[[], bytes], next_step: str) -> None:
        """Refuse to go on, on all processes alike, when ``value``, 32 bytes, is not the same on all of them.

        Raises:
            UserError: naming the ranks that differ from rank 0.
        """

    def disband(self) -> None:
        """Once all are here: from now on every process goes on, and ends, by itself."""


ALONE = Team()


@contextmanager
def join() -> Iterator[Team]:
    """The team of this process for as long as the block lasts: that of torchrun, or ``ALONE`` without it.

    What ends one process is said once on each machine; the others then end with the same exit status and no word.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    previous = signal.signal(signal.SIGTERM, _interrupt)  # torchrun sends it to those whose peer has died
    try:
        team = _Processes()
        try:
            yield team
            team.disband()
        except (Exception, KeyboardInterrupt) as error:
            team.leave(error)
            raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class _Processes(Team):
    """Two or more processes that torchrun has started."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._agreed_to_stop = False
        try:
            dist.init_process_group("gloo", timeout=MEETING)
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
            self._on_device = self._group
            # A name that no earlier start of the same torchrun has used.
            started = torch.tensor([time.time_ns()])
            dist.broadcast(started, 0, self._group)
            self._watch = _Watch(f"run/{int(started)}", self.rank, self.size)
            dist.barrier(self._group)
            self._watch.start()
        except RuntimeError as error:
            raise LostProcessError(
                f"rank {self.rank}",
                expected=f"to meet all {self.size} processes at {os.environ['MASTER_ADDR']}",
                found=_first_line(error),
                next_step="see what the others wrote, and whether the machines reach each other",
            ) from error

    # ---- exchanges ----

    def _exchange(self, operation: Callable[..., Any], *arguments: Any, **settings: Any) -> None:
        """Run a collective operation; its failure becomes a LostProcessError that names who is gone."""
        try:
            operation(*arguments, **settings)
        except RuntimeError as error:
            raise self._watch.blame(error) from error

    def _sum_(self, value: Tensor) -> Tensor:
        """``value``, now the sum over all processes."""
        self._exchange(dist.all_reduce, value, group=self._on_device)
        return value

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self._sum_(torch.cat([gradient.reshape(-1) for gradient in gradients])).div_(self.size)
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view(gradient.shape))  # keeps its memory layout, which is that of the parameter

    def mean(self, value: Tensor) -> Tensor:
        return self.sum(value) / self.size

    def means(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(values, self.mean(torch.stack(list(values.values()))), strict=True))

    def sum(self, value: Tensor) -> Tensor:
        return self._sum_(value.detach().clone())

    def part(self, rows: Tensor, total: int) -> Tensor:
        return rows.sum() * (self.size / (total * rows.shape[1:].numel()))

    def dropout(self, batch: int) -> AbstractContextManager[object]:
        return _RowsOfDropout(batch, self.rows(batch))

    def share_batch_norm(self, module: nn.Module) -> None:
        for parent in list(module.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(parent, name, _SharedBatchNorm(child, self))

    def _any(self, flag: bool) -> bool:
        said = torch.tensor([int(flag)])
        self._exchange(dist.all_reduce, said, op=dist.ReduceOp.MAX, group=self._group)
        return bool(said)

    def agree_to_stop(self, flag: bool) -> bool:
        self._agreed_to_stop = self._any(flag)
        return self._agreed_to_stop

    def wait(self) -> None:
        self._exchange(dist.barrier, group=self._group)

    def from_first(self, function: Callable[[], int]) -> int:
        value = torch.tensor([int(function()) if self.is_first else 0])
        self._exchange(dist.broadcast, value, 0, group=self._group)
        return int(value)

    def require_same(self, what: str, value: Callable[[], bytes], next_step: str) -> None:
        own = torch.frombuffer(bytearray(value()), dtype=torch.uint8)
        found = [torch.zeros_like(own) for _ in range(self.size)]
        self._exchange(dist.all_gather, found, own, group=self._group)
        hashes = [bytes(row.tolist()).hex()[:12] for row in found]
        others = [rank for rank, hashed in enumerate(hashes) if hashed != hashes[0]]
        if others:
            raise UserError(
                what,
                expected=f"the same on all {self.size} processes (sha256 {hashes[0]}… on rank 0)",
                found=", ".join(f"{hashes[rank]}… on rank {rank}" for rank in others[:3]),
                next_step=next_step,
            )

    # ---- beginning and end ----

    def take_device(self, name: str) -> str:
        if name not in ("cpu", "cuda"):
            raise UserError(
                "--device",
                expected="cpu, cuda or auto: with torchrun, each process takes the GPU of its LOCAL_RANK",
                found=name,
                next_step="choose GPUs with CUDA_VISIBLE_DEVICES",
            )
        if not self._any(name == "cuda"):
            return name
        processes, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if gpus < processes or not dist.is_nccl_available():
            raise UserError(
                f"--device cuda on {socket.gethostname()}",
                expected=f"CUDA with NCCL, and a GPU for each of the {processes} processes there",
                found=f"{gpus} GPUs" if dist.is_nccl_available() else "a PyTorch without NCCL",
                next_step="start no more processes than GPUs (--nproc-per-node), or give --device cpu to all",
            )
        device = int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(device)
        self._on_device = dist.new_group(backend="nccl")
        return f"cuda:{device}"

    def disband(self) -> None:
        if self._watch.over:
            return
        self.wait()
        self._watch.stop()
        dist.destroy_process_group()

    def leave(self, error: BaseException) -> None:
        """Tell the others why this process ends; end it here if that has been said, or if a peer is gone."""
        if self._watch.over:
            return
        for number in (signal.SIGINT, signal.SIGTERM):  # torchrun repeats what the terminal has sent
            signal.signal(number, signal.SIG_IGN)
        if isinstance(error, KeyboardInterrupt) and not self._agreed_to_stop:
            # Asked by a person, or by torchrun because a peer has died?
            error = self._watch.cause_within(SILENT_S + 2 * BEAT_S) or error
        if isinstance(error, LostProcessError):
            self._watch.end(error)
        message = str(error) or type(error).__name__
        note = self._watch.tell(message)
        self._watch.stop()
        if note.rank != self.rank and note.message == message and self._watch.is_said_here(note):
            raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None


# ---- who is gone ----


@dataclass(frozen=True)
class _Note:
    """The first reason that a process of the run gave for its end."""

    rank: int
    host: str
    message: str


class _Watch:
    """Signs of life of all processes, by way of torchrun's store; ends a process whose peers are gone.

    It has its own connection to the store and two threads: one talks to the store, which may hang when a machine
    vanishes, the other looks at the clock.
    """

    def __init__(self, name: str, rank: int, size: int) -> None:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        client = dist.TCPStore(  # type: ignore[attr-defined]  # torch does not say that it exports it
            address, port, is_master=False, wait_for_workers=False, timeout=MEETING
        )
        self._store = dist.PrefixStore(name, client)  # type: ignore[attr-defined]
        self._rank, self._size, self._address = rank, size, address
        self._host = socket.gethostname()
        self._keys = [f"beat/{peer}" for peer in range(size)]
        self._store.set(f"who/{rank}", f"process {os.getpid()} on {self._host}")
        self._store.set(self._keys[rank], "0")
        self._over = threading.Event()
        self._note: _Note | None = None

    def start(self) -> None:
        """Once all have their first sign of life in the store."""
        self._who = [who.decode() for who in self._store.multi_get([f"who/{peer}" for peer in range(self._size)])]
        self._answered = time.monotonic()
        self._heard = [self._answered] * self._size
        for target in (self._beat, self._guard):
            threading.Thread(target=target, daemon=True).start()

    @property
    def over(self) -> bool:
        """Whether ``stop`` was called."""
        return self._over.is_set()

    def stop(self) -> None:
        """No process is missed any more."""
        self._over.set()

    def _beat(self) -> None:
        last: Sequence[bytes] = [b""] * self._size
        count = 0
        while not self._over.wait(BEAT_S):
            count += 1
            try:
                self._store.set(self._keys[self._rank], str(count))
                beats = self._store.multi_get(self._keys)
                if self._store.check(["note"]):
                    self._note = _Note(**json.loads(self._store.get("note")))
            except RuntimeError:
                return  # _guard sees that nothing is heard any more
            self._answered = time.monotonic()
            for peer in range(self._size):
                if beats[peer] != last[peer]:
                    self._heard[peer] = self._answered
            last = beats

    def _guard(self) -> None:
        looked = time.monotonic()
        while not self._over.wait(BEAT_S):
            now = time.monotonic()
            if now - looked > SILENT_S:  # this process itself was stopped: nobody else is to blame
                self._answered = now
                self._heard = [now] * self._size
            looked = now
            cause = self._cause(LOST_S)
            if cause is not None and not self._over.wait(GRACE_S):
                self.end(cause)

    def _cause(self, silent_s: float) -> LostProcessError | None:
        """Who has ended or was not heard for ``silent_s``."""
        if self._note is not None and self._note.rank != self._rank:
            return LostProcessError(
                f"rank {self._note.rank} ({self._who[self._note.rank]})",
                expected="that it goes on",
                found=self._note.message,
                next_step="see what it wrote; continue with --resume",
            )
        now = time.monotonic()
        if now - self._answered > silent_s:
            return LostProcessError(
                f"torchrun on {self._address}",
                expected="an answer from its store",
                found=f"none for {now - self._answered:.0f} s: it, rank 0 or that machine is gone",
                next_step="see what rank 0 wrote; continue with --resume",
            )
        peer = min((p for p in range(self._size) if p != self._rank), key=lambda p: self._heard[p])
        if now - self._heard[peer] > silent_s:
            return LostProcessError(
                f"rank {peer} ({self._who[peer]})",
                expected="a sign of life",
                found=f"none for {now - self._heard[peer]:.0f} s: it was killed, is frozen, or its machine is gone",
                next_step="see what it wrote last; continue with --resume",
            )
        return None

    def cause_within(self, seconds: float) -> LostProcessError | None:
        """Look for that long for a process that is gone."""
        limit = time.monotonic() + seconds
        while (cause := self._cause(SILENT_S)) is None and time.monotonic() < limit:
            time.sleep(BEAT_S)
        return cause

    def blame(self, error: RuntimeError) -> LostProcessError:
        """Who is gone, after an exchange has failed."""
        return self.cause_within(3 * SILENT_S) or LostProcessError(
            f"rank {self._rank} ({self._who[self._rank]})",
            expected="an exchange with the other processes",
            found=_first_line(error),
            next_step="see what the others wrote; continue with --resume",
        )

    def tell(self, message: str) -> _Note:
        """Leave the reason of this process's end where the others find it; returns the first reason that was left."""
        own = _Note(self._rank, self._host, message)
        first = [own]  # it stays that where nobody is left to read it

        def ask() -> None:
            with suppress(RuntimeError):
                first[0] = _Note(**json.loads(self._store.compare_set("note", "", json.dumps(asdict(own)))))

        asking = threading.Thread(target=ask, daemon=True)  # for ever, if the machine of the store has vanished
        asking.start()
        asking.join(SILENT_S)
        return first[0]

    def is_said_here(self, note: _Note) -> bool:
        """Whether somebody on this machine has said it, or will."""
        return note.host == self._host or os.environ["LOCAL_RANK"] != "0"

    def end(self, cause: LostProcessError) -> NoReturn:
        """End this process at once: libraries may wait for the lost peer even in their destructors.

        Files are safe, as they are from a kill.
        """
        note = self.tell(str(cause))
        if note.rank == self._rank or not self.is_said_here(note):
            print(f"dr: {cause}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


# ---- arithmetic of the whole batch ----


class _RowsOfDropout(TorchFunctionMode):
    """Draws dropout for the whole batch and applies it to some rows."""

    def __init__(self, batch: int, rows: slice) -> None:
        super().__init__()
        self._batch, self._rows = batch, rows

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.dropout or not kwargs["training"]:
            return func(*args, **kwargs)
        (x,) = args
        scale = F.dropout(x.new_ones((self._batch, *x.shape[1:])), kwargs["p"])  # 0 or 1 / (1 - p)
        return x * scale[self._rows]


class _Sum(torch.autograd.Function):
    """Sum over the processes through which gradients pass: every process's loss depends on it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, team: _Processes) -> Tensor:
        ctx.team = team
        return team.sum(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.team.sum(gradients[0]), None


class _SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of the rows of all processes, on any device."""

    def __init__(self, own: nn.BatchNorm2d, team: _Processes) -> None:
        super().__init__(own.num_features, own.eps, own.momentum)
        self.to(own.weight.device)
        self.load_state_dict(own.state_dict())
        self._team = team

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        count = x.numel() // x.shape[1] * self._team.size
        mean = self._sum(x.sum((0, 2, 3))) / count
        centred = x - mean.view(1, -1, 1, 1)
        variance = self._sum(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)

    def _sum(self, value: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(value, self._team)
        return total
