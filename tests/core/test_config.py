"""Configuration: right files build the right dataclasses, and every mistake is named."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Optional

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dr_core.config import build, dump_yaml, load_yaml, override, parse_set, to_mapping
from dr_core.errors import ConfigError


@dataclass(frozen=True)
class Optimiser:
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0


@dataclass(frozen=True)
class Limit:
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")


@dataclass(frozen=True)
class Config:
    name: str = "run"
    batch_size: int = 32
    bf16: bool = False
    kind: Literal["fsq", "vqgan", 3] = "fsq"
    output: Path = Path("runs")
    clip: float | None = None
    weights: Optional[Path] = None  # noqa: UP045 - the old spelling has to work as well
    tags: tuple[str, ...] = ()
    levels: list[int] = field(default_factory=lambda: [8, 8, 8])
    width: int | str = "auto"
    optimiser: Optimiser = Optimiser()
    warm_start: Optimiser | None = None
    limits: dict[str, Limit] = field(default_factory=dict)


@dataclass(frozen=True)
class Required:
    task: str
    limit: Limit


def message(call: Any, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_nothing_given_is_the_defaults(tmp_path: Path) -> None:
    assert build(Config, load_yaml(write(tmp_path, "# only a comment\n"))) == Config()


def test_every_kind_of_value(tmp_path: Path) -> None:
    text = """
        batch_size: 8
        bf16: true
        kind: 3
        output: somewhere/else
        clip: 1
        weights: w.safetensors
        tags: [a, b]
        levels: [4]
        width: 128
        optimiser: {lr: 3e-4, betas: [0.5, 0.9]}
        warm_start: {warmup_steps: 5}
        limits: {elbow: {low: -1.5, high: 0.0}}
    """
    assert build(Config, load_yaml(write(tmp_path, text))) == Config(
        batch_size=8,
        bf16=True,
        kind=3,
        output=Path("somewhere/else"),
        clip=1.0,
        weights=Path("w.safetensors"),
        tags=("a", "b"),
        levels=[4],
        width=128,
        optimiser=Optimiser(lr=3e-4, betas=(0.5, 0.9)),
        warm_start=Optimiser(warmup_steps=5),
        limits={"elbow": Limit(-1.5, 0.0)},
    )


def test_a_whole_number_becomes_a_float() -> None:
    value = build(Config, {"clip": 2}).clip
    assert type(value) is float and value == 2.0


@pytest.mark.parametrize(
    ("mapping", "key", "words"),
    [
        ({"batchsize": 8}, "batchsize", ["'batch_size'", "unknown key"]),
        ({"optimiser": {"lrr": 1.0}}, "optimiser.lrr", ["'lr'"]),
        ({"limits": {"elbow": {"low": 0, "hihg": 1}}}, "limits.elbow.hihg", ["'high'"]),
        ({"zzzzz": 1}, "zzzzz", ["one of name, batch_size"]),
        ({1: 2}, "1", ["unknown key"]),
        ({"batch_size": "8"}, "batch_size", ["a whole number", "'8' (str)"]),
        ({"batch_size": 8.0}, "batch_size", ["a whole number", "8.0 (float)"]),
        ({"batch_size": True}, "batch_size", ["a whole number", "True (bool)"]),
        ({"batch_size": None}, "batch_size", ["a whole number", "None"]),
        ({"bf16": 1}, "bf16", ["true or false", "1 (int)"]),
        ({"clip": False}, "clip", ["a number", "False (bool)"]),
        ({"clip": math.nan}, "clip", ["a number", "nan"]),
        ({"clip": 10**400}, "clip", ["a number"]),
        ({"clip": "fast"}, "clip", ["a number", "'fast'"]),
        ({"name": 3}, "name", ["text", "3 (int)"]),
        ({"output": 3}, "output", ["a path"]),
        ({"kind": "vqgn"}, "kind", ["one of 'fsq', 'vqgan', 3", "nearest: 'vqgan'"]),
        ({"kind": True}, "kind", ["one of 'fsq'"]),
        ({"tags": "a"}, "tags", ["a list of text"]),
        ({"tags": ["a", 1]}, "tags[1]", ["text", "1 (int)"]),
        ({"width": 1.5}, "width", ["a whole number or text"]),
        ({"optimiser": {"betas": [0.9]}}, "optimiser.betas", ["a list of 2 (a number, a number)"]),
        ({"optimiser": 3}, "optimiser", ["a mapping", "3 (int)"]),
        ({"optimiser": None}, "optimiser", ["a mapping", "None"]),
        ({"limits": {1: {"low": 0, "high": 1}}}, "limits", ["a mapping of names"]),
        ({"limits": {"elbow": {"low": 0}}}, "limits.elbow.high", ["nothing"]),
        ({"limits": {"elbow": {"low": 1, "high": 0}}}, "limits.elbow", ["low 1.0 is above high 0.0"]),
    ],
)
def test_a_mistake_is_named(mapping: dict[str, Any], key: str, words: list[str]) -> None:
    text = message(build, Config, mapping, where="train.yaml")
    assert text.startswith(f"train.yaml: {key}: expected ")
    for word in words:
        assert word in text
    assert message(override, Config(), mapping).startswith(f"{key}: expected ")


def test_required_fields_are_asked_for() -> None:
    assert message(build, Required, {"task": "reach"}).startswith("limit: ")
    assert build(Required, {"task": "reach", "limit": {"low": 0, "high": 1}}).limit == Limit(0.0, 1.0)


def test_only_plain_types_may_be_configured() -> None:
    @dataclass(frozen=True)
    class Bad:
        value: complex = 0j

    with pytest.raises(TypeError, match="value"):
        build(Bad, {"value": 1})
    with pytest.raises(TypeError, match="not a dataclass"):
        build(int, {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: !!python/object/apply:os.system ['true']", ["Python tags", "python/object"]),
        ("name: !!python/name:os.system", ["Python tags"]),
        ("a: 1\nb: {c: 1, c: 2}", ["line 2", "each key once", "'c'"]),
        ("a: 1\na: 1", ["line 2", "each key once"]),
        ("a: &x [1]\nb: *x", ["line 2", "alias *x"]),
        ("a: &x\n  b: *x", ["alias *x"]),
        ("? [a, b]\n: 1", ["line 1", "a name as key"]),
        ("- 1\n- 2", ["`key: value`", "list"]),
        ("just text", ["`key: value`"]),
        ("a: [1", ["plain YAML"]),
        ("a: 2020-99-99", ["plain YAML"]),
        ("a: " + "[" * 40 + "]" * 40, ["levels"]),
        ("a: " + "[" * 100_000, ["levels"]),
        (b"a: \xff", ["UTF-8"]),
        ("a: \x00", ["plain YAML"]),
        ("# " + "x" * 2**20, ["at most"]),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str | bytes, words: list[str]) -> None:
    path = write(tmp_path, text)
    found = message(load_yaml, path)
    assert found.startswith(str(path))
    for word in words:
        assert word in found


def test_python_tags_run_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "made"
    message(load_yaml, write(tmp_path, f"a: !!python/object/apply:pathlib.Path.touch [{victim}]"))
    assert not victim.exists()


def test_a_missing_file_or_a_directory_is_refused(tmp_path: Path) -> None:
    assert "No such file" in message(load_yaml, tmp_path / "none.yaml")
    assert "directory" in message(load_yaml, tmp_path)


def test_override_merges_dataclasses_and_replaces_the_rest() -> None:
    start = Config(optimiser=Optimiser(lr=1.0, warmup_steps=7), levels=[1, 2], limits={"elbow": Limit(0, 1)})
    got = override(start, {"optimiser": {"lr": 2}, "levels": [3], "limits": {}, "warm_start": {"lr": 5}})
    assert got == replace(
        start,
        optimiser=Optimiser(lr=2.0, warmup_steps=7),
        levels=[3],
        limits={},
        warm_start=Optimiser(lr=5.0),
    )
    assert start.levels == [1, 2]
    assert override(got, {"warm_start": {"warmup_steps": 1}}).warm_start == Optimiser(lr=5.0, warmup_steps=1)
    assert override(got, {"warm_start": None}).warm_start is None


def test_override_checks_the_combination_again() -> None:
    assert "above high" in message(override, Limit(0.0, 1.0), {"low": 2})


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("batch_size=3", {"batch_size": 3}),
        ("optimiser.lr=1e-3", {"optimiser": {"lr": "1e-3"}}),  # read as a number where a number belongs
        ("name=a=b", {"name": "a=b"}),
        ("clip=null", {"clip": None}),
        ("levels=[1, 2]", {"levels": [1, 2]}),
        ("name=", {"name": None}),
    ],
)
def test_parse_set(text: str, mapping: dict[str, Any]) -> None:
    assert parse_set(text) == mapping


def test_parse_set_then_override() -> None:
    assert override(Config(), parse_set("optimiser.lr=1e-3")).optimiser.lr == 1e-3


@pytest.mark.parametrize("text", ["lr", "=3", "a..b=3", ".a=3", "a=[", "a=!!python/none", "a={b: 1, b: 2}"])
def test_parse_set_refuses(text: str) -> None:
    message(parse_set, text)


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.floats(allow_nan=False)
optimisers = st.builds(Optimiser, lr=numbers, betas=st.tuples(numbers, numbers), warmup_steps=st.integers())


@given(
    st.builds(
        Config,
        name=words,
        batch_size=st.integers(),
        bf16=st.booleans(),
        kind=st.sampled_from(["fsq", "vqgan", 3]),
        clip=st.none() | numbers,
        weights=st.none() | st.just(Path("a/b.c")),
        tags=st.lists(words, max_size=3).map(tuple),
        width=st.integers() | words,
        optimiser=optimisers,
        warm_start=st.none() | optimisers,
        limits=st.dictionaries(words, numbers.map(lambda x: Limit(x, x)), max_size=2),
    )
)
def test_what_is_written_reads_back_the_same(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    dump_yaml(path, to_mapping(config))
    assert build(Config, load_yaml(path)) == config
    assert yaml.safe_load(path.read_text(encoding="ascii")).keys() == to_mapping(config).keys()
