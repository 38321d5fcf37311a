"""Configuration: frozen dataclasses filled from YAML, every key and type checked before anything is built.

A YAML file only overrides the defaults written in the dataclasses. It holds plain values: no Python tags, no
aliases, no duplicate keys. A mistake is a `ConfigError` that names the key, what was expected and what was
found.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dr_core.errors import ConfigError

T = TypeVar("T")

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_ITEMS = 10_000
"""Keys, values and brackets; more would take the parser many seconds."""
MAX_CHARACTERS = 3000
"""Of one key or value, so that every number can be printed (Python's limit is 4300 digits)."""
# PyYAML follows YAML 1.1, where a number without a dot such as 1e-4 is text; people mean the number.
_EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+")
_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    type(None): "null",
}


def load_yaml(path: Path | str) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: missing, unreadable, larger than 1 MiB; not YAML; tags, aliases, duplicate keys; more than 10,000
            items, or a longer one than 3000 characters.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            str(path),
            expected="a readable YAML file",
            found=error.strerror or "an error",
            next_step="give its path",
        ) from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(
            str(path),
            expected=f"at most {MAX_BYTES} bytes",
            found="a larger file",
            next_step="check that this is a configuration file",
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            str(path),
            expected="UTF-8 text",
            found=f"another byte at {error.start}",
            next_step="save it as UTF-8",
        ) from error
    value = parse_yaml(text, str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(
            str(path),
            expected="`key: value` lines at the top",
            found=_show(value),
            next_step="name the value with a key",
        )
    return value


def dump_yaml(path: Path | str, mapping: Mapping[str, Any]) -> None:
    """Write plain values, for example those of `to_mapping`, so that `load_yaml` gives them back."""
    # ASCII only: PyYAML's reader turns some characters, such as U+0085, into spaces.
    Path(path).write_text(yaml.safe_dump(dict(mapping), sort_keys=False), encoding="utf-8")


def build(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """An instance of the dataclass `cls`, nested ones included, from plain values.

    Args:
        cls: a dataclass whose fields are bool, int, float, str, Path, Literal, tuple, list, dict[str, X],
            dataclasses, or unions of these with None. Fields not in `mapping` keep their defaults.
        mapping: plain values, as `load_yaml` returns them.
        where: what error messages name first, for example the file.

    Raises:
        ConfigError: unknown key (with the nearest known one), missing key, wrong type, or a combination that
            the dataclass itself refuses with ValueError.
    """
    return _construct(cls, None, mapping, where, "")


def override(instance: T, mapping: Mapping[str, Any]) -> T:
    """A copy of a configuration with some values replaced.

    Nested dataclasses are merged field by field; every other value (lists and dicts too) is replaced whole.

    Raises:
        ConfigError: as `build`.
    """
    return _construct(type(instance), instance, mapping, "", "")


def parse_set(text: str) -> dict[str, Any]:
    """`"train.lr=3"` as `{"train": {"lr": 3}}`, for `override`; the value is read as YAML.

    Raises:
        ConfigError: no `=`, an empty part in the key, or a value that is not plain YAML.
    """
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            text,
            expected="key=value with a dotted key",
            found=repr(text),
            next_step="write for example train.lr=1e-4",
        )
    result: Any = parse_yaml(value, key)
    for part in reversed(parts):
        result = {part: result}
    return typing.cast("dict[str, Any]", result)


def to_mapping(instance: Any) -> dict[str, Any]:
    """A configuration dataclass as plain YAML values: paths as text, tuples as lists."""
    return {field.name: _plain(getattr(instance, field.name)) for field in dataclasses.fields(instance) if field.init}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_mapping(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def parse_yaml(text: str, subject: str) -> Any:
    """`yaml.safe_load`, after refusing what it would accept too easily.

    Raises:
        ConfigError: as `load_yaml`; its subject is ``subject``.
    """
    try:
        root = _Composer(_without_surprises(text, subject)).get_single_node()
        if root is None:
            return None
        _refuse_duplicates(root, subject)
        return yaml.constructor.SafeConstructor().construct_document(root)
    except (yaml.YAMLError, ValueError, LookupError) as error:  # an impossible date, too many digits, a lone sign
        raise ConfigError(
            subject,
            expected="plain YAML values (no Python tags)",
            found=" ".join(str(error).split()),
            next_step="correct that line",
        ) from error


class _Composer(yaml.composer.Composer, yaml.resolver.Resolver):
    """Puts nodes together from events that are parsed one by one as they are asked for."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        yaml.composer.Composer.__init__(self)
        yaml.resolver.Resolver.__init__(self)
        self._events = events
        self._next: yaml.Event | None = None

    def peek_event(self) -> yaml.Event | None:
        if self._next is None:
            self._next = next(self._events, None)
        return self._next

    def get_event(self) -> yaml.Event | None:
        event, self._next = self.peek_event(), None
        return event

    def check_event(self, *choices: type[yaml.Event]) -> bool:
        event = self.peek_event()
        return event is not None and (not choices or isinstance(event, choices))


def _without_surprises(text: str, subject: str) -> Iterator[yaml.Event]:
    """What YAML holds; refused are aliases, tags (PyYAML fails in many ways on a wrong one), and sizes that no
    configuration has.
    """
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if count > MAX_ITEMS:
            raise ConfigError(
                subject, expected=f"at most {MAX_ITEMS} keys and values", found="more", next_step="shorten the file"
            )
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(
                _line(subject, event),
                expected="values written out, no aliases",
                found=f"the alias *{event.anchor}",
                next_step="repeat the value",
            )
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_CHARACTERS:
            raise ConfigError(
                _line(subject, event),
                expected=f"at most {MAX_CHARACTERS} characters in a value",
                found=f"{len(event.value)}",
                next_step="shorten it",
            )
        if (tag := getattr(event, "tag", None)) not in (None, "!"):
            raise ConfigError(
                _line(subject, event),
                expected="plain YAML values (no Python tags)",
                found=f"the tag {tag!r:.80}",
                next_step="correct that line",
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(
                subject, expected=f"at most {MAX_DEPTH} levels", found="more", next_step="flatten the file"
            )
        yield event


def _refuse_duplicates(node: yaml.Node, subject: str) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item, subject)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = _line(subject, key)
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(line, expected="a name as key", found="a collection", next_step="correct that line")
            if key.value in seen:
                raise ConfigError(
                    line,
                    expected="each key once",
                    found=f"{key.value!r} again",
                    next_step="remove one of them",
                )
            seen.add(key.value)
            _refuse_duplicates(value, subject)


def _line(subject: str, at: yaml.Node | yaml.Event) -> str:
    return f"{subject} line {at.start_mark.line + 1}" if at.start_mark else subject


def _construct(cls: type[T], base: T | None, mapping: Any, where: str, dotted: str) -> T:
    """Build `cls`, or replace fields of `base`; `dotted` is the key that leads here."""
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise TypeError(f"{cls!r} is not a dataclass")
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            _subject(where, dotted) or cls.__name__,
            expected="a mapping of settings",
            found=_show(mapping),
            next_step="write `key: value` lines below it",
        )
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        here = f"{dotted}.{key}" if dotted else str(key)
        if key not in fields:
            raise ConfigError(
                _subject(where, here),
                expected=_nearest(key, fields),
                found="an unknown key",
                next_step="rename or remove it",
            )
        current = None if base is None else getattr(base, key)
        values[key] = _convert(hints[key], current, value, where, here)
    try:
        if base is not None:
            return typing.cast("T", dataclasses.replace(typing.cast("Any", base), **values))
        for name, field in fields.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and name not in values:
                raise ConfigError(
                    _subject(where, f"{dotted}.{name}" if dotted else name),
                    expected=_describe(hints[name]),
                    found="nothing",
                    next_step="set it",
                )
        return cls(**values)
    except (ValueError, ArithmeticError) as error:  # a division by a number of the file, too
        raise ConfigError(
            _subject(where, dotted) or cls.__name__,
            expected="settings that fit together",
            found=str(error),
            next_step="change one of them",
        ) from error


def _convert(kind: Any, current: Any, value: Any, where: str, dotted: str) -> Any:
    """`value` as the annotated type `kind`, or ConfigError."""
    wrong = ConfigError(
        _subject(where, dotted),
        expected=_describe(kind, value),
        found=_show(value),
        next_step="correct the value",
    )
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, current, value, where, dotted, wrong)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _construct(kind, current if isinstance(current, kind) else None, value, where, dotted)
    if origin is typing.Literal:
        for option in arguments:
            if type(option) is type(value) and option == value:
                return option
        raise wrong
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise wrong
        same = origin is list or (len(arguments) == 2 and arguments[1] is ...)
        kinds = [arguments[0]] * len(value) if same else list(arguments)
        if len(kinds) != len(value):
            raise wrong
        pairs = zip(kinds, value, strict=True)
        return origin(_convert(k, None, v, where, f"{dotted}[{i}]") for i, (k, v) in enumerate(pairs))
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise wrong
        return {key: _convert(arguments[1], None, item, where, f"{dotted}.{key}") for key, item in value.items()}
    if kind is float:
        number = _as_float(value)
        if number is None:
            raise wrong
        return number
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    if kind not in _NAMES:
        raise TypeError(f"{dotted}: configuration fields cannot be of type {kind!r}")
    if type(value) is not kind:  # exact, because a bool is an int for isinstance
        raise wrong
    return value


def _convert_union(
    arguments: tuple[Any, ...], current: Any, value: Any, where: str, dotted: str, wrong: ConfigError
) -> Any:
    if value is None and type(None) in arguments:
        return None
    members = [member for member in arguments if member is not type(None)]
    if len(members) == 1:  # Optional: the message of its one member says more
        return _convert(members[0], current, value, where, dotted)
    for member in members:
        try:
            return _convert(member, current, value, where, dotted)
        except ConfigError:
            continue
    raise wrong


def _as_float(value: Any) -> float | None:
    """A finite or infinite number, or None: NaN is never a setting."""
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return None if math.isnan(number) else number


def _describe(kind: Any, value: Any = None) -> str:
    """The annotated type in words; for a Literal, the nearest option to `value` comes with the list."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        near = difflib.get_close_matches(str(value), [str(option) for option in arguments], n=1)
        hint = f" (nearest: {near[0]!r})" if near else ""
        return f"one of {', '.join(repr(option) for option in arguments)}{hint}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(argument, value) for argument in arguments)
    if origin is dict:
        return f"a mapping of names to {_describe(arguments[1])}"
    if origin is list or (origin is tuple and arguments[1:] == (...,)):
        return f"a list of {_describe(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)} ({', '.join(_describe(argument) for argument in arguments)})"
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return "a mapping of settings"
    return _NAMES.get(kind, str(kind))


def _nearest(key: Any, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(key), list(known), n=1)
    return f"{near[0]!r}, the nearest known key" if near else f"one of {', '.join(known)}"


def _subject(where: str, dotted: str) -> str:
    return f"{where}: {dotted}" if where and dotted else where or dotted


def _show(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
