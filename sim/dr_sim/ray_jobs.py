"""Trainings of a sweep on a Ray cluster, which needs no shared file system.

What a training reads travels to its node, what it measured and the agent travel back; replay and checkpoints stay on
the node until it is finished. Nodes need this package with its simulator, and the same versions of Python and Ray.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dr_core.errors import OutputInUseError, UserError
from dr_core.files import exclusive, write_whole
from dr_sim.sweep import Job, start_training

Files = Mapping[str, bytes]
"""Path relative to a directory, with "/", and content."""

CONNECT_S = 10.0
ANSWER_S = 60.0
"""How long a cluster may take to accept a connection, and to answer."""
REPORT_S = 30.0
"""Between two reports of a training."""
IN_USE_S = 120.0
"""How long to wait for a training whose worker died, and which ends after its round."""
PROGRESS = ("evaluations.jsonl", "metrics.jsonl")
RESULTS = (*PROGRESS, "config.yaml", "tensorboard", "videos", "agent")
LOG, RUN = "log", "run"
RETRIES = 2
"""Of a training whose node is lost."""

_CONNECT = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"


class RayError(UserError):
    """A Ray cluster cannot be used."""


# ---- on this machine ----


class Cluster:
    """A running Ray cluster that this machine is part of, for the jobs of one sweep.

    Args:
        address: HOST:PORT of its head, or "auto".
        out: directory of the sweep; remembers which node has which training.
        folder: directory on the nodes for trainings under way; "~" is the home there.
        inputs: options of train-agent and the file or directory here that goes with each.
        cpus, gpus: of each training.

    Raises:
        RayError: Ray is missing, no cluster answers, or no node is large enough.
    """

    def __init__(
        self, address: str, out: Path, folder: str, inputs: Sequence[tuple[str, Path]], cpus: int, gpus: float
    ) -> None:
        self.ray = _connect(address)
        try:
            self._need_room(cpus, gpus)
            identity = out / "ray_id"
            if not identity.exists():
                identity.write_text(uuid.uuid4().hex, encoding="utf-8")
            self._folder = f"{folder}/{identity.read_text(encoding='utf-8')}"
            self._names = [(flag, path.resolve().name) for flag, path in inputs]
            self._inputs = [self.ray.put(pack(path.resolve())) for _, path in inputs]
            self._options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES}
            self._options["scheduling_strategy"] = "SPREAD"
            self._train, self._forget = self.ray.remote(train_on_node), self.ray.remote(num_cpus=0)(forget_on_node)
            self._forgetting: list[Any] = []
        except BaseException:
            self.ray.shutdown()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        if self._forgetting:
            self.ray.wait(self._forgetting, num_returns=len(self._forgetting), timeout=ANSWER_S)
        self.ray.shutdown()

    def start(self, job: Job, words: Sequence[str]) -> RayTraining:
        """Queue a training, on the node that has a part of it if that is still there."""
        options = {"name": str(job), **self._options}
        place = RayTraining.node_file(job)
        if place.is_file():
            options["scheduling_strategy"] = self._on(place.read_text(encoding="utf-8"), soft=True)
        train = self._train.options(**options)
        stream = train.remote(list(words), self._folder_of(job), self._names, *self._inputs)
        return RayTraining(self, job, stream)

    def forget(self, job: Job, node: str) -> None:
        """Remove what a node has of a training that is finished here."""
        task = self._forget.options(scheduling_strategy=self._on(node, soft=False))
        self._forgetting.append(task.remote(self._folder_of(job)))

    def _folder_of(self, job: Job) -> str:
        return f"{self._folder}/{job.task}/{job.reward}/seed_{job.seed}"

    def _on(self, node: str, *, soft: bool) -> object:
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        return strategies.NodeAffinitySchedulingStrategy(node, soft=soft)

    def _need_room(self, cpus: int, gpus: float) -> None:
        """Ray would wait for ever for a node that is large enough."""
        sizes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(size.get("CPU", 0.0) >= cpus and size.get("GPU", 0.0) >= gpus for size in sizes):
            found = ", ".join(f"{size.get('CPU', 0.0):g} and {size.get('GPU', 0.0):g}" for size in sizes)
            raise RayError(
                "the Ray cluster",
                expected=f"a node with {cpus} cores and {gpus:g} GPUs",
                found=f"nodes with {found}",
                next_step="lower --ray-cpus or --ray-gpus",
            )


class RayTraining:
    """A training on the cluster; its reports are written here as they come."""

    def __init__(self, cluster: Cluster, job: Job, stream: Any) -> None:
        self._cluster, self._job, self._stream = cluster, job, stream
        self._status: int | None = None
        self._node = ""

    @staticmethod
    def node_file(job: Job) -> Path:
        """Holds the node that has a part of the training."""
        return Path(f"{job.out}.node")

    def poll(self) -> int | None:
        """Exit status; None: it waits or runs. Status 1 also when Ray could not run it; the log says why."""
        ray = self._cluster.ray
        while ray.wait([self._stream], timeout=0)[0]:
            try:
                node, self._status, files = ray.get(next(self._stream))
            except StopIteration:
                return 1 if self._status is None else self._status
            except ray.exceptions.TaskCancelledError:
                return 1
            except ray.exceptions.RayError as error:
                self._job.log.parent.mkdir(parents=True, exist_ok=True)
                with self._job.log.open("a", encoding="utf-8") as log:
                    log.write(f"{error}\n")
                return 1
            self._keep(node, files)
        return None

    def terminate(self) -> None:
        """Ask it to stop after the running round."""
        self._cluster.ray.cancel(self._stream)

    def kill(self) -> None:
        """Take its worker away; a round that is under way is lost."""
        self._cluster.ray.cancel(self._stream, force=True)

    def _keep(self, node: str, files: Files) -> None:
        job = self._job
        if node != self._node:
            print(f"{job}: on node {node}", flush=True)
            self._node = node
        # The manifest of the agent is the last file: with it the job is done.
        unpack({name: data for name, data in files.items() if name != LOG}, job.out)
        job.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.node_file(job), node)
        write_whole(job.log, files.get(LOG, b""))
        if self._status == 0 and job.done:
            self.node_file(job).unlink()
            self._cluster.forget(job, node)


def _connect(address: str) -> Any:
    """Ray, connected.

    Raises:
        RayError: it is not installed, or no cluster answers.
    """
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise RayError(
            "--ray", expected="the package ray", found=str(error), next_step="install it: pip install -e '.[ray]'"
        ) from error
    if address.startswith("ray://"):
        raise RayError(
            "--ray",
            expected="HOST:PORT of the cluster's head, or auto",
            found=address,
            next_step="join the cluster with `ray start --address HOST:PORT --num-cpus 0` and give HOST:PORT",
        )
    host, _, port = address.rpartition(":")
    command = [sys.executable, "-c", _CONNECT, address]
    try:
        if host and port.isdigit():
            socket.create_connection((host, int(port)), CONNECT_S).close()
        # A process of its own tries first: Ray waits long for some addresses, and ends the process for others.
        tried = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, errors="replace")
        status, said = tried.returncode, tried.stderr.strip().splitlines() or ["no answer"]
    except OSError as error:
        status, said = 1, [str(error)]
    except subprocess.TimeoutExpired:
        status, said = 1, [f"no answer within {ANSWER_S:.0f} s"]
    if status:
        raise RayError(
            f"--ray {address}",
            expected="a running Ray cluster that this machine is part of",
            found=said[-1],
            next_step="start it with `ray start --head`, or join it with `ray start --address HOST:PORT`",
        )
    ray.init(address, log_to_driver=False, logging_level="ERROR")
    return ray


# ---- on the nodes ----


def train_on_node(
    words: Sequence[str], folder: str, names: Sequence[tuple[str, str]], *inputs: Files
) -> Iterator[tuple[str, int | None, Files]]:
    """Begin or continue one training; yields reports: node, exit status (None: it runs), files of the run and LOG.

    Args:
        words: options of train-agent.
        folder: of this training on the node.
        names: options and the name of the file or directory that goes with each.
        inputs: those, packed.
    """
    root = Path(folder).expanduser()
    arguments = list(words)
    for index, ((flag, name), files) in enumerate(zip(names, inputs, strict=True)):
        unpack(files, root / "inputs" / str(index))
        arguments += [flag, str(root / "inputs" / str(index) / name)]
    _wait_until_free(root / RUN)
    ray = importlib.import_module("ray")
    node = ray.get_runtime_context().get_node_id()
    process = start_training(arguments, root / RUN, root / LOG)
    try:
        status: int | None = None
        yield node, None, {}
        while status is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(REPORT_S)
            told = PROGRESS if status is None else RESULTS
            yield node, status, {**pack_below(root / RUN, told), **pack_below(root, (LOG,))}
    finally:
        process.terminate()
        process.wait()


def forget_on_node(folder: str) -> None:
    """Remove a training, and the directories of its reward, task and sweep if nothing else is in them."""
    root = Path(folder).expanduser()
    shutil.rmtree(root, ignore_errors=True)
    with contextlib.suppress(OSError):
        for parent in root.parents[:3]:
            parent.rmdir()


def _wait_until_free(run: Path) -> None:
    """Until an earlier process of this training is gone, or it is clear that it stays."""
    until = time.monotonic() + IN_USE_S
    while time.monotonic() < until:
        try:
            with exclusive(run):
                return
        except OutputInUseError:
            time.sleep(1.0)


# ---- files on the way ----


def pack(path: Path) -> Files:
    """A file or directory with all that is in it; names begin with its own."""
    return pack_below(path.parent, (path.name,))


def pack_below(folder: Path, names: Sequence[str]) -> Files:
    """The files of these names in ``folder``, and all files below the directories of these names."""
    paths = [path for name in names for path in (folder / name, *sorted((folder / name).rglob("*")))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def unpack(files: Files, folder: Path) -> None:
    """Write the files; manifests last, since they say that a directory is whole."""
    for name in sorted(files, key=lambda name: Path(name).name == "manifest.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, files[name])
