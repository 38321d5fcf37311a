"""The published experts of Adroit (aravindr93/hand_dapg, dapg/policies/*.pickle) as weights for `AdroitExpert`.

The files are pickles of policies of mjrl (aravindr93/mjrl), that is of its objects and of torch's, and a pickle is a
program that may call anything. So it is not unpickled: the reader below walks through its instructions, puts together
the data that they describe, and calls nothing that the file names. A name is a label here, and any but those that
such policies need is refused. Torch is not needed either: the tensors' bytes are read here too, since torch's own
restricted reader could be made to run code before torch 2.6 (CVE-2025-32434).

Three generations of the class `mjrl.policies.gaussian_mlp.MLP` are known: with a network `MuNet` (fc0, fc1, fc2) as in
the published files, with an `FCNetwork`, and with its layers in itself.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from dr_core.errors import CheckpointError, ConfigError, OutputInUseError, UserError
from dr_core.files import fsync
from dr_sim.experts import AdroitExpert
from dr_sim.tasks import ADROIT_TASKS, resolve_task

MAX_BYTES = 4 << 20
"""A network with two hidden layers of 64, in all the copies that its policy keeps, takes about 0.1 MB."""
SIZES = {"adroit-door": (39, 28), "adroit-hammer": (46, 26), "adroit-pen": (45, 24)}
"""Numbers of an observation and of an action."""

POLICY = "mjrl.policies.gaussian_mlp.MLP"
MUNET, FC_NETWORK = "mjrl.policies.gaussian_mlp.MuNet", "mjrl.utils.fc_network.FCNetwork"
EPSILONS = {MUNET: 1e-8, FC_NETWORK: 1e-8, POLICY: 1e-6}
"""What is added to in_scale, by the class that holds the layers."""
OURS = 1e-8
"""The same of `AdroitExpert`."""

STORAGES = {
    "torch.HalfStorage": "<f2",
    "torch.FloatStorage": "<f4",
    "torch.DoubleStorage": "<f8",
    "torch.IntStorage": "<i4",
    "torch.LongStorage": "<i8",
}
REBUILD_TENSOR = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
WRAPPERS = (
    "torch._utils._rebuild_parameter",
    "torch.nn.parameter.Parameter",
    "torch.autograd.variable.Variable",
)
"""Their first argument is the tensor."""
FUNCTIONS = ("torch._C._VariableFunctions", "torch._C._VariableFunctionsClass")
"""Where torch.tanh and its like live."""
STORED_FORMAT = (0x1950A86A20F9469CFC6C, 1001)
"""What a storage saved by torch begins with."""

NAMES_IN_STORAGE = frozenset(STORAGES)
NAMES = frozenset(
    {
        *(*EPSILONS, *STORAGES, *REBUILD_TENSOR, *WRAPPERS, *FUNCTIONS),
        *("torch.nn.modules.linear.Linear", "torch.nn.modules.container.ModuleList", "torch.Size", "torch.device"),
        *("torch.storage._load_from_bytes", "torch.nn.backends.thnn._get_thnn_function_backend"),
        # Log deviations and counts, which nothing reads.
        *("numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar"),
        *("numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar"),
        *("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"),
        # As Python 2 and 3 call them; stored under these names, they are not what is called.
        *("collections.OrderedDict", "_codecs.encode", "builtins.getattr", "__builtin__.getattr"),
        *("builtins.set", "__builtin__.set", "builtins.bytes", "__builtin__.bytes"),
    }
)

Floats = NDArray[np.float32]


class _Unreadable(Exception):
    """Why a file is not read; what is found there."""


# ---- instructions to data ----


@dataclass(frozen=True)
class _Name:
    """What a file calls by a name; a label, which stands for nothing here."""

    name: str


class _Made:
    """What a file would make: by calling `name` with `args`, and then setting `state`."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        self.name, self.args, self.state = name, args, None


VALUES = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)


def _read(stream: io.BytesIO, names: frozenset[str], *, storage: bool = False) -> Any:
    """The data that one pickle at the stream's position describes; the stream then stands behind it.

    Args:
        names: that may occur.
        storage: it may hold a reference to data behind it, read as a `_Made` of that name.

    Raises:
        _Unreadable: a foreign name or instruction.
        ValueError, LookupError, TypeError: no whole pickle.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    taken = 0  # what calls have taken in

    def label(name: Any) -> _Name:
        if not isinstance(name, str) or name not in names:
            raise _Unreadable(f"{_shown(name)} in it, which no such policy needs (nothing in it was executed)")
        return _Name(name)

    def make(name: str, args: tuple[Any, ...]) -> Any:
        nonlocal taken
        taken += sum(len(each) for each in args if isinstance(each, str | bytes | list))
        if taken > 4 * MAX_BYTES:  # few bytes can ask for the same data again and again
            raise _Unreadable("data that is larger than its file")
        return _make(name, args)

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    value: Any
    for instruction, value, _ in pickletools.genops(stream):
        what = instruction.name
        if what in VALUES:
            stack.append(value)
        elif what in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[what])
        elif what in ("PROTO", "FRAME"):
            pass
        elif what == "MARK":
            marks.append(len(stack))
        elif what in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[value] = stack[-1]
        elif what == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif what in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif what in ("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            count = ("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3").index(what)
            items = [stack.pop() for _ in range(count)]
            stack.append(tuple(reversed(items)))
        elif what == "TUPLE":
            stack.append(tuple(since_mark()))
        elif what in ("EMPTY_LIST", "EMPTY_SET"):  # a set is one of names; nothing asks what is in it
            stack.append([])
        elif what == "EMPTY_DICT":
            stack.append({})
        elif what in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if what == "APPEND" else since_mark()
            _of(list, stack[-1]).extend(items)
        elif what in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if what == "SETITEM" else since_mark()
            _fill(_of(dict, stack[-1]), items)
        elif what == "GLOBAL":
            stack.append(label(value.replace(" ", ".")))
        elif what == "STACK_GLOBAL":
            name, module = _of(str, stack.pop()), _of(str, stack.pop())
            stack.append(label(f"{module}.{name}"))
        elif what in ("REDUCE", "NEWOBJ"):
            args, made = _of(tuple, stack.pop()), _of(_Name, stack.pop())
            stack.append(make(made.name, args))
        elif what == "OBJ":
            made, *rest = since_mark()
            stack.append(make(_of(_Name, made).name, tuple(rest)))
        elif what == "BUILD":
            state = stack.pop()
            _of(_Made, stack[-1]).state = state
        elif what == "BINPERSID" and storage:
            stack.append(_Made("storage", _of(tuple, stack.pop())))
        elif what != "STOP":
            raise _Unreadable(f"the instruction {what} in it, which no such policy needs (nothing in it was executed)")
    return stack.pop()


def _make(name: str, args: tuple[Any, ...]) -> Any:
    """What `name` of `args` is: plain data where they are needed, otherwise what was asked for."""
    if name == "_codecs.encode":  # bytes, in a file for Python 2
        text, encoding = args
        if encoding not in ("latin1", "latin-1"):
            raise _Unreadable("bytes that are not written as latin1")
        return _of(str, text).encode("latin-1")
    if name == "collections.OrderedDict":
        mapping: dict[Any, Any] = {}
        for pair in _of(list, args[0]) if args else []:
            key, value = pair
            _fill(mapping, [key, value])
        return mapping
    if name == "torch.storage._load_from_bytes":
        (data,) = args
        return _stored(data.encode("latin-1") if isinstance(data, str) else _of(bytes, data))
    if name in STORAGES:
        numbers = _of(list, args[0]) if args else []
        if not all(type(number) in (int, float) for number in numbers):
            raise _Unreadable("a tensor of something else than numbers")
        return np.array(numbers, STORAGES[name])
    return _Made(name, args)


def _stored(data: bytes) -> NDArray[Any]:
    """The numbers of a storage (N,) in the bytes that torch wrote for it."""
    stream = io.BytesIO(data)
    begin = tuple(_read(stream, frozenset()) for _ in STORED_FORMAT)
    machine = _of(dict, _read(stream, frozenset()))
    reference = _of(_Made, _read(stream, NAMES_IN_STORAGE, storage=True))
    keys = _of(list, _read(stream, frozenset()))
    kind, dtype_name, key, _, count, view = reference.args
    if (
        not isinstance(key, str)  # comparing what is deeply nested can take for ever
        or begin != STORED_FORMAT
        or machine.get("little_endian") is not True
        or view is not None
        or not (isinstance(kind, str) and kind == "storage" and len(keys) == 1 and isinstance(keys[0], str))
        or keys != [key]
    ):
        raise _Unreadable("a tensor in a format of torch that is not known")
    dtype = np.dtype(STORAGES[_of(_Name, dtype_name).name])
    body = memoryview(data)[stream.tell() :]
    size = int.from_bytes(body[:8], "little")
    if size != _of(int, count) or len(body) != 8 + size * dtype.itemsize:
        raise _Unreadable(f"{len(body)} bytes of a tensor of {size} numbers")
    return np.frombuffer(body[8:], dtype)


def _fill(mapping: dict[Any, Any], items: list[Any]) -> None:
    """Set keys and values that take turns."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing what is deeply nested can end the process.
        if not isinstance(key, str | int):
            raise _Unreadable(f"a {type(key).__name__} as a key")
        mapping[key] = value


def _of(kind: type[Any], value: Any) -> Any:
    """`value`, which is of a type."""
    if not isinstance(value, kind):
        raise _Unreadable(f"a {type(value).__name__} in the place of a {kind.__name__.lstrip('_')}")
    return value


def _shown(text: Any) -> str:
    """Foreign text, short and on one line."""
    shown = repr(text)[1:-1]
    return shown if len(shown) <= 60 else f"{shown[:60]}…"


# ---- data to weights ----


def read_policy(path: Path) -> dict[str, Floats]:
    """The arrays of `AdroitExpert` in a policy file of mjrl; nothing in the file is executed.

    Raises:
        CheckpointError: unreadable, too large, anything but a policy of a tanh network with two hidden layers, shapes
            that do not fit, or numbers that are not finite.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise _Unreadable(f"more than {MAX_BYTES} bytes")
        return _weights(_read(io.BytesIO(data), NAMES))
    except _Unreadable as error:
        raise _refused(path, str(error)) from error
    except OSError as error:
        raise _refused(path, os.strerror(error.errno or 0)) from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError) as error:
        found = f"a damaged or foreign file ({_shown(str(error))}; nothing in it was executed)"
        raise _refused(path, found) from error


def _weights(policy: Any) -> dict[str, Floats]:
    """Arrays by name, of a policy as it was read."""
    if not isinstance(policy, _Made) or policy.name != POLICY:
        raise _Unreadable(f"a {policy.name if isinstance(policy, _Made) else type(policy).__name__}")
    state = _state(policy)
    network = _of(_Made, state["model"]) if "model" in state else policy
    if network.name not in EPSILONS:
        raise _Unreadable(f"a network of class {network.name}")
    state = _state(network)
    function = state.get("nonlinearity")  # a MuNet has none of its own
    named = isinstance(function, _Made) and function.name.endswith(".getattr") and len(function.args) == 2
    if function is not None and not (
        named and function.args[1] == "tanh" and function.args[0] in map(_Name, FUNCTIONS)
    ):
        raise _Unreadable("a network of something else than tanh")

    layers = _entries(state, "_modules")
    if "fc_layers" in layers:
        layers = _entries(_state(layers["fc_layers"]), "_modules")
        named_layers = [layers.get(str(i)) for i in range(len(layers))]
    else:
        named_layers = [layers.get(f"fc{i}") for i in range(len(layers))]
    if len(named_layers) != 3:
        raise _Unreadable(f"{len(named_layers)} layers, not 3")
    arrays: dict[str, NDArray[np.float64]] = {}
    for i, layer in enumerate(named_layers):
        parameters = _entries(_state(layer), "_parameters")
        arrays[f"w{i}"], arrays[f"b{i}"] = _tensor(parameters, "weight"), _tensor(parameters, "bias")
    for name in ("in_shift", "in_scale", "out_shift", "out_scale"):
        arrays[name] = _tensor(state, name)
    arrays["in_scale"] = arrays["in_scale"] + (EPSILONS[network.name] - OURS)

    inputs, outputs = arrays["in_shift"].size, arrays["out_shift"].size
    widths = [inputs, arrays["b0"].size, arrays["b1"].size, outputs]
    shapes: dict[str, tuple[int, ...]] = {"in_shift": (inputs,), "in_scale": (inputs,)}
    shapes |= {"out_shift": (outputs,), "out_scale": (outputs,)}
    shapes |= {f"w{i}": (widths[i + 1], widths[i]) for i in range(3)} | {f"b{i}": (widths[i + 1],) for i in range(3)}
    made = {}
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise _Unreadable(f"{name} of shape {arrays[name].shape} instead of {shape}")
        with np.errstate(over="ignore"):
            made[name] = arrays[name].astype(np.float32)
        if not np.isfinite(made[name]).all():
            raise _Unreadable(f"{name}, not finite")
    return made


def _state(made: Any) -> dict[Any, Any]:
    """Attributes of an object."""
    return _of(dict, _of(_Made, made).state)


def _entries(state: dict[Any, Any], name: str) -> dict[Any, Any]:
    if name not in state:
        raise _Unreadable(f"a policy without {name}")
    return _of(dict, state[name])


def _tensor(state: dict[Any, Any], name: str) -> NDArray[np.float64]:
    """The tensor or parameter of a name as an array of its own."""
    value = state.get(name)
    while isinstance(value, _Made) and value.name in WRAPPERS:
        value = value.args[0]
    if not isinstance(value, _Made) or value.name not in REBUILD_TENSOR:
        raise _Unreadable(f"a policy without {name}" if value is None else f"{name}, no tensor")
    storage, offset, shape, strides = value.args[:4]
    shape = shape.args[0] if isinstance(shape, _Made) and shape.name == "torch.Size" else shape
    storage, shape, strides = _of(np.ndarray, storage), _of(tuple, shape), _of(tuple, strides)
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and 0 <= number <= storage.size for number in numbers) or len(shape) != len(strides):
        raise _Unreadable(f"{name}, a tensor that does not fit its {storage.size} numbers")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # A stride of 0 would make a large tensor of few numbers.
    if 0 in shape or len(shape) > 2 or last >= storage.size or math.prod(shape) > storage.size:
        raise _Unreadable(f"{name}, a tensor that does not fit its {storage.size} numbers")
    item = storage.itemsize
    view = np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [item * stride for stride in strides], writeable=False
    )
    return view.astype(np.float64)


def _refused(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        str(path),
        expected="a policy of mjrl as hand_dapg publishes them: a pickled MLP of two hidden tanh layers",
        found=found,
        next_step="give the file as it was published (dapg/policies/door-v0.pickle and its like)",
    )


# ---- the command ----


def import_policy(path: Path, task: str, out: Path) -> Path:
    """Write the expert weights of an Adroit task from a published policy; return where they are.

    Args:
        path: policy file.
        task: "adroit-door", "adroit-hammer" or "adroit-pen".
        out: directory, for `dr record-expert --adroit-weights`; made if it is not there.

    Raises:
        CheckpointError: the file is refused, see `read_policy`, or belongs to another task.
        OutputInUseError: the weights of this task are there already.
        ConfigError: no such task. UserError: a directory that cannot be written.
    """
    task = resolve_task(task)
    if task not in ADROIT_TASKS:
        raise ConfigError("--task", expected=", ".join(ADROIT_TASKS), found=repr(task), next_step="give one of them")
    # As dr_sim.environments.adroit_weights_file looks for it.
    target = out / f"{task.removeprefix('adroit-')}_policy.npz"
    if target.exists():
        raise OutputInUseError(
            str(target), expected="no such file yet", found="one", next_step="give another --out or remove it"
        )
    arrays = read_policy(path)
    sizes = arrays["in_shift"].size, arrays["out_shift"].size
    if sizes != SIZES[task]:
        raise CheckpointError(
            str(path),
            expected=f"a policy of {task}: {SIZES[task][0]} observed numbers, {SIZES[task][1]} of an action",
            found=f"{sizes[0]} and {sizes[1]}",
            next_step="give the policy that belongs to the task",
        )
    temporary = out / f".{target.name}.writing"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]  # its first keyword is a flag
        AdroitExpert(temporary)
        fsync(temporary)
        temporary.rename(target)
        fsync(out)
    except OSError as error:
        raise UserError(
            str(target),
            expected="a writable directory",
            found=os.strerror(error.errno or 0),
            next_step="give another --out",
        ) from error
    return target


@dataclass(frozen=True)
class ImportAdroitPolicy:
    """Make an Adroit expert of a policy file that hand_dapg publishes; the file is read as data, never executed."""

    policy: tyro.conf.Positional[Path]
    """Policy file of mjrl, for example door-v0.pickle."""
    task: str
    """adroit-door, adroit-hammer or adroit-pen."""
    out: Path
    """Directory of the weights, for `dr record-expert --adroit-weights`."""

    def run(self) -> int:
        """Convert; exit status 0 when the weights are written."""
        print(f"expert: {import_policy(self.policy, self.task, self.out)}")
        return 0
