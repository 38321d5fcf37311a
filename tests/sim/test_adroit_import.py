"""The importer of published Adroit policies: the same actions as the original library, and no code of the file runs."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import struct
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import tyro

from dr_core.errors import CheckpointError, ConfigError, OutputInUseError
from dr_sim.adroit_import import MAX_BYTES, SIZES, ImportAdroitPolicy, import_policy, read_policy
from dr_sim.environments import make_expert
from dr_sim.experts import AdroitExpert

POLICIES, NETWORKS = "mjrl.policies.gaussian_mlp", "mjrl.utils.fc_network"
TASK = "adroit-door"
OBSERVED, ACTIONS, HIDDEN = *SIZES[TASK], 8


# ---- the original library, as far as its files show it ----


class MuNet(torch.nn.Module):
    """The network of the published files: three layers by name."""

    __module__ = POLICIES

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.transformations = {"in_shift": np.ones(2), "in_scale": None}
        self.fc0, self.fc1, self.fc2 = (torch.nn.Linear(*pair) for pair in itertools.pairwise(sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - self.in_shift) / (self.in_scale + 1e-8)
        x = torch.tanh(self.fc1(torch.tanh(self.fc0(x))))
        return self.fc2(x) * self.out_scale + self.out_shift


class FCNetwork(torch.nn.Module):
    """A later one: a list of layers, and the function between them."""

    __module__ = NETWORKS
    epsilon = 1e-8

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.fc_layers = torch.nn.ModuleList([torch.nn.Linear(*pair) for pair in itertools.pairwise(sizes)])
        self.nonlinearity = torch.tanh
        self.device = "cpu"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - self.in_shift) / (self.in_scale + self.epsilon)
        for layer in self.fc_layers[:-1]:
            x = self.nonlinearity(layer(x))
        return self.fc_layers[-1](x) * self.out_scale + self.out_shift


class NewMLP(FCNetwork):
    """The latest policy, which is its own network."""

    __module__, __qualname__ = POLICIES, "MLP"
    epsilon = 1e-6


class OldMLP:
    """The policy around a network, with what else its files hold."""

    __module__, __qualname__ = POLICIES, "MLP"

    def __init__(self, network: torch.nn.Module) -> None:
        self.n, self.m, self.min_log_std = OBSERVED, ACTIONS, -3
        self.model, self.old_model = network, network
        self.log_std = torch.zeros(ACTIONS, requires_grad=True)
        self.trainable_params = [*network.parameters(), self.log_std]
        self.log_std_val = np.linspace(-2.0, 1.0, ACTIONS)
        self.param_shapes = [tuple(p.shape) for p in self.trainable_params]
        self.d = np.sum([p.numel() for p in self.trainable_params])
        self.obs_var = torch.randn(1, OBSERVED)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pickle find the classes above under their original names; `make_policy` chooses the MLP."""
    for name in ("mjrl", "mjrl.policies", "mjrl.utils", POLICIES, NETWORKS):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    vars(sys.modules[POLICIES])["MuNet"] = MuNet
    vars(sys.modules[NETWORKS])["FCNetwork"] = FCNetwork


def make_policy(kind: type[torch.nn.Module] = MuNet, *, hidden: int = 2, observed: int = OBSERVED) -> Any:
    torch.manual_seed(0)
    network = kind([observed, *[HIDDEN] * hidden, ACTIONS])
    network.in_shift, network.in_scale = torch.randn(observed), torch.rand(observed) + 0.1
    network.out_shift, network.out_scale = torch.randn(ACTIONS) / 9, torch.rand(ACTIONS) / 9
    policy = network if kind is NewMLP else OldMLP(network)
    vars(sys.modules[POLICIES])["MLP"] = type(policy)
    return policy


class Torch03(pickle.Pickler):
    """Tensors as torch wrote them before 0.4.1: storages as lists of numbers."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.nn.Parameter):
            return torch.nn.parameter.Parameter, (value.data,), (True, False, None)
        if isinstance(value, torch.Tensor):
            numbers = value.detach().reshape(-1).tolist()
            return torch._utils._rebuild_tensor, (Numbers(numbers), 0, tuple(value.shape), tuple(value.stride()))
        if isinstance(value, Numbers):
            return torch.FloatStorage, (value.numbers,)
        return NotImplemented


class Numbers:
    def __init__(self, numbers: list[float]) -> None:
        self.numbers = numbers


class Python2(pickle._Pickler):
    """Text and bytes as Python 2 wrote them: both as strings of bytes."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_string(self, value: str | bytes) -> None:
        data = value.encode("latin-1") if isinstance(value, str) else value
        short = len(data) < 256
        self.write((b"U" + bytes([len(data)]) if short else b"T" + struct.pack("<i", len(data))) + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def written(value: Any, pickler: Any = pickle.Pickler, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    pickler(stream, protocol).dump(value)
    return stream.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# ---- what is read ----


@pytest.mark.parametrize(
    "pickler, protocol", [(pickle.Pickler, p) for p in (2, 3, 4, 5)] + [(Torch03, 3), (Python2, 2)]
)
@pytest.mark.parametrize("kind", [MuNet, FCNetwork, NewMLP])
def test_the_expert_acts_as_the_original(
    kind: type[torch.nn.Module], pickler: Any, protocol: int, tmp_path: Path
) -> None:
    policy = make_policy(kind)
    if kind is MuNet:
        from torch.nn.backends import thnn

        backend = type("Backend", (), {"__reduce__": lambda self: (thnn._get_thnn_function_backend, ())})
        policy.model._backend = backend()
    file = put(tmp_path / "door-v0.pickle", written(policy, pickler, protocol))
    command = tyro.cli(ImportAdroitPolicy, args=[str(file), "--task", TASK, "--out", str(tmp_path / "experts")])
    assert command.run() == 0
    expert = make_expert(TASK, tmp_path / "experts")
    observations = np.random.default_rng(0).normal(size=(20, OBSERVED))
    with torch.no_grad():
        expected = policy.forward(torch.from_numpy(observations).float()).clamp(-1.0, 1.0).numpy()
    assert expected.std() > 0.03
    assert np.abs(np.stack([expert(each) for each in observations]) - expected).max() < 1e-6


def test_views_and_transposed_tensors_are_read_as_they_are(tmp_path: Path) -> None:
    policy = make_policy()
    flat = torch.cat([p.detach().reshape(-1) for p in policy.model.parameters()])
    offset = 0
    for parameter in policy.model.parameters():
        parameter.data = flat[offset : offset + parameter.numel()].view(parameter.shape)
        offset += parameter.numel()
    policy.model.fc1.weight.data = policy.model.fc1.weight.data.T.contiguous().T
    policy.model.in_shift = policy.model.in_shift.double()
    arrays = read_policy(put(tmp_path / "policy", written(policy)))
    for i in range(3):
        layer = getattr(policy.model, f"fc{i}")
        assert np.array_equal(arrays[f"w{i}"], layer.weight.detach().numpy())
        assert np.array_equal(arrays[f"b{i}"], layer.bias.detach().numpy())
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)} and sorted(arrays) == sorted(
        AdroitExpert.ARRAYS
    )


# ---- what is refused ----


class Calls:
    """Pickled as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class HoldsState:
    """Pickled as an allowed object with a foreign state."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __reduce__(self) -> Any:
        return torch.Size, ((1,),), self.state


def saved(value: Any) -> bytes:
    """As torch writes a file, and the storage of a tensor in a pickle."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def foreign(canary: Path) -> dict[str, Any]:
    """What touches the canary, if it is unpickled or loaded."""
    call = Calls(os.system, f"touch {canary}")
    load = torch.storage._load_from_bytes
    return {
        "call": call,
        "eval": Calls(eval, f"open({str(canary)!r}, 'w').close()"),
        "exec": Calls(exec, f"open({str(canary)!r}, 'w').close()"),
        "call in a state": HoldsState(call),
        "call in a tensor": Calls(load, pickle.dumps(call)),
        "call in a tensor's file": Calls(load, saved({"weights": call})),
        "function of a name": Calls(getattr, Calls(__import__, "os"), "system"),
        "tensor in a tensor": Calls(load, pickle.dumps(Calls(load, pickle.dumps(call)))),
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", foreign(Path()))
def test_no_code_of_a_file_runs(name: str, protocol: int, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    value = foreign(canary)[name]
    policy = make_policy()
    policy.model.extra = value
    for data in (written(policy, protocol=protocol), written(value, protocol=protocol), pickle.dumps(value, 0)):
        with pytest.raises(CheckpointError, match="nothing in it was executed"):
            read_policy(put(tmp_path / "policy", data))
        assert not canary.exists()
    if name in ("call", "eval"):  # the files are what they seem to be
        pickle.loads(written(policy, protocol=protocol))
        assert canary.exists()


LONG_TEXT = b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<i", 1 << 20) + b"x" * (1 << 20) + b"q\x01"
CRAFTED = {
    "INST": (b"(ios\nsystem\n.", "INST"),
    "OBJ": (b"(cos\nsystem\nX\x02\x00\x00\x00lso.", "os.system"),
    "a new object with keywords": (b"ctorch\nSize\n)}\x92.", "NEWOBJ_EX"),
    "an extension": (b"\x82\x01.", "EXT1"),
    "a foreign reference": (b"X\x01\x00\x00\x00aQ.", "BINPERSID"),
    "a state for a name": (b"ctorch\nSize\n}X\x0c\x00\x00\x00__setstate__Nsb.", "a _Name in the place of a Made"),
    "a state for a list": (b"]}b.", "a list in the place"),
    "a call of no name": (b"X\x02\x00\x00\x00os)R.", "a str in the place of a Name"),
    "a name of two lines": (b"X\x0a\x00\x00\x00os\nsystem\nX\x01\x00\x00\x00a\x93.", r"os\\nsystem"),
    "a key too deep to hash": (b"})" + b"\x85" * 100_000 + b"Ns.", "a tuple as a key"),
    "deep nesting": (b")" + b"\x85" * 100_000 + b".", "found a tuple"),
    "a memo of billions": (b"Nr\xff\xff\xff\xff.", "found a NoneType"),
    "bytes that are not there": (b"\x8e" + struct.pack("<Q", 1 << 60) + b"x.", "damaged"),
    "the same text again and again": (
        LONG_TEXT + b"h\x00h\x01X\x06\x00\x00\x00latin1\x86R" * 100 + b".",
        "larger than",
    ),
    "a huge file": (b"N" * (MAX_BYTES + 1), "more than"),
    "nothing": (b"", "damaged"),
    "no pickle": (b"PK\x03\x04 an archive", "damaged"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_files_are_refused(name: str, tmp_path: Path) -> None:
    data, found = CRAFTED[name]
    with pytest.raises(CheckpointError, match=found) as refused:
        read_policy(put(tmp_path / "policy", data))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_cut_off_anywhere_is_refused(protocol: int, tmp_path: Path) -> None:
    data = written(make_policy(), protocol=protocol)
    for length in [*range(0, len(data), len(data) // 40), len(data) - 1]:
        with pytest.raises(CheckpointError):
            read_policy(put(tmp_path / "policy", data[:length]))


def rebuilt(storage: Any, *place: Any) -> Calls:
    return Calls(torch._utils._rebuild_tensor, storage, *place)


def test_policies_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def refused(found: str, policy: Any) -> None:
        with pytest.raises(CheckpointError, match=found):
            read_policy(put(tmp_path / "policy", written(policy)))

    def changed(**attributes: Any) -> Any:
        policy = make_policy()
        for name, value in attributes.items():
            setattr(policy.model, name, value)
        return policy

    refused("4 layers, not 3", make_policy(FCNetwork, hidden=3))
    refused("something else than tanh", changed(nonlinearity=torch.relu))
    refused("found a builtins.eval|found a dict", {"fc0": 1})
    refused("in_shift, not finite", changed(in_shift=torch.full((OBSERVED,), torch.nan)))
    refused("out_scale, not finite", changed(out_scale=torch.full((ACTIONS,), 1e300, dtype=torch.float64)))
    refused(r"in_scale of shape \(3,\) instead of \(39,\)", changed(in_scale=torch.ones(3)))
    refused("in_scale, no tensor", changed(in_scale=np.ones(OBSERVED)))
    refused("a policy without out_shift", changed(out_shift=None))
    refused("in_shift, a tensor that", changed(in_shift=torch.zeros(1).expand(OBSERVED)))
    storage = torch.zeros(OBSERVED)._typed_storage()
    for place in [(1, (OBSERVED,), (1,)), (0, (OBSERVED,), (2,)), (-1, (OBSERVED,), (1,)), (0, (OBSERVED,), (1, 1)),
                  (0, (1 << 62,), (1,)), (0, (1.0,), (1,)), (0, (0,), (1,))]:  # fmt: skip
        refused("in_shift, a tensor that does not fit", changed(in_shift=rebuilt(storage, *place)))
    refused("something else than numbers", changed(in_shift=rebuilt(Calls(torch.FloatStorage, [[0.0]]), 0, (1,), (1,))))


def test_mistakes_of_the_user_are_told(tmp_path: Path) -> None:
    file = put(tmp_path / "door-v0.pickle", written(make_policy()))
    with pytest.raises(ConfigError, match="adroit"):
        import_policy(file, "adroit-relocate", tmp_path)
    with pytest.raises(ConfigError, match="door-close"):
        import_policy(file, "door-close", tmp_path)
    with pytest.raises(CheckpointError, match="46 observed numbers, 26 of an action; found 39 and 28"):
        import_policy(file, "adroit-hammer", tmp_path)
    with pytest.raises(CheckpointError, match="No such file"):
        import_policy(tmp_path / "nowhere", TASK, tmp_path)
    assert import_policy(file, TASK, tmp_path) == tmp_path / "door_policy.npz"
    with pytest.raises(OutputInUseError):
        import_policy(file, TASK, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["door-v0.pickle", "door_policy.npz"]
