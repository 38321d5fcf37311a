"""The `--ros-args` part of a command line: remapping, parameters, log levels, enclave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from dr_embedded.names import expand_topic_name, validate_namespace
from dr_embedded.ros.exceptions import InvalidNamespaceException, UnknownROSArgsError

_IGNORED_FLAGS = {
    f"--{switch}-{what}"
    for switch in ("enable", "disable")
    for what in ("rosout-logs", "stdout-logs", "external-lib-logs")
}


@dataclass(frozen=True)
class Remap:
    """`node` limits a rule to one node; `source` is a name, or `__node`, `__ns`."""

    node: str | None
    source: str
    target: str


@dataclass
class Arguments:
    """What the command line says; nodes ask by their own name."""

    remaps: list[Remap] = field(default_factory=list)
    parameters: list[tuple[str, str, Any]] = field(default_factory=list)  # (node pattern, name, value)
    log_levels: dict[str | None, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    enclave: str = "/"

    def _rules(self, node: str) -> Iterator[Remap]:
        return (rule for rule in self.remaps if rule.node in (None, node))

    def node_name(self, name: str) -> str:
        return next((rule.target for rule in self._rules(name) if rule.source in ("__node", "__name")), name)

    def namespace(self, name: str, namespace: str) -> str:
        return next((rule.target for rule in self._rules(name) if rule.source == "__ns"), namespace)

    def remap(self, full_name: str, node: str, namespace: str, *, is_service: bool = False) -> str:
        """The name that a topic or service really gets; the first rule that matches decides."""
        other = "rostopic://" if is_service else "rosservice://"
        for rule in self._rules(node):
            if rule.source.startswith("__") or rule.source.startswith(other):
                continue
            source = rule.source.split("://")[-1]
            if expand_topic_name(source, node, namespace) == full_name:
                return expand_topic_name(rule.target, node, namespace)
        return full_name

    def parameter_overrides(self, node: str, namespace: str) -> dict[str, Any]:
        """Values for this node by parameter name; later ones win."""
        full = f"{namespace.rstrip('/')}/{node}"
        return {name: value for pattern, name, value in self.parameters if _matches(pattern, full)}


def _matches(pattern: str, full_name: str) -> bool:
    """`/**` is any node, `/*` one part of a name."""
    if not pattern.startswith("/"):
        pattern = f"/{pattern}"
    if pattern == "/**":
        return True
    if pattern.startswith("/**/"):
        return full_name.endswith(pattern[3:])
    parts, found = pattern.split("/"), full_name.split("/")
    return len(parts) == len(found) and all(fnmatchcase(b, a) for a, b in zip(parts, found, strict=True))


def parse(arguments: Sequence[str]) -> Arguments:
    """Split a command line; everything outside `--ros-args … --` goes to `others`.

    Raises:
        UnknownROSArgsError: an unknown or malformed argument.
        RuntimeError: a parameter file that is missing or not in ROS format.
    """
    parsed = Arguments()
    inside = False
    words = iter(arguments)
    for word in words:
        if word == "--ros-args":
            inside = True
        elif word == "--" and inside:
            inside = False
        elif not inside:
            parsed.others.append(word)
        elif word in _IGNORED_FLAGS:
            continue
        elif word in ("-r", "--remap"):
            parsed.remaps.append(_remap(next(words, "")))
        elif word in ("-p", "--param"):
            rule = _remap(next(words, ""))
            parsed.parameters.append((rule.node or "/**", rule.source, yaml.safe_load(rule.target)))
        elif word == "--params-file":
            parsed.parameters.extend(read_parameter_file(Path(next(words, ""))))
        elif word in ("-e", "--enclave"):
            parsed.enclave = _enclave(next(words, ""))
        elif word == "--log-level":
            name, _, level = next(words, "").rpartition(":=")
            parsed.log_levels[name or None] = level
        else:
            raise UnknownROSArgsError(f"Found unknown ROS arguments: '{word}'")
    return parsed


def _enclave(name: str) -> str:
    """Raises UnknownROSArgsError: no absolute name."""
    try:
        validate_namespace(name)
    except InvalidNamespaceException as error:
        raise UnknownROSArgsError(f"--enclave {name}: {error}") from error
    return name


def _remap(text: str) -> Remap:
    source, separator, target = text.partition(":=")
    if not separator or not source:
        raise UnknownROSArgsError(f"'{text}' is not of the form NAME:=VALUE")
    node: str | None = None
    if ":" in source and "://" not in source:
        node, _, source = source.partition(":")
    return Remap(node, source, target)


def read_parameter_file(path: Path) -> list[tuple[str, str, Any]]:
    """The (node pattern, parameter, value) of a file in ROS format.

    Raises:
        RuntimeError: no such file, no YAML, or not `NODE: {ros__parameters: {…}}`.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    # PyYAML fails in many ways on what carries a wrong tag or nests too deeply.
    except (OSError, yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as problem:
        raise RuntimeError(f"Error opening YAML file {path}: {' '.join(str(problem).split())}") from problem
    if not isinstance(content, dict):
        raise RuntimeError(f"{path}: expected nodes with ros__parameters, found {type(content).__name__}")
    return list(_node_entries("", content, path))


def _node_entries(prefix: str, content: dict[str, Any], path: Path) -> Iterator[tuple[str, str, Any]]:
    for key, value in content.items():
        if not isinstance(value, dict):
            raise RuntimeError(f"{path}: '{key}' must hold ros__parameters, found {type(value).__name__}")
        if key == "ros__parameters":
            yield from ((prefix or "/**", name, setting) for name, setting in flatten("", value))
        else:
            yield from _node_entries(f"{prefix}/{str(key).lstrip('/')}", value, path)


def flatten(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Nested mappings become dotted parameter names."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value
