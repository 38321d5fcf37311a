"""Which message and service types exist, and what ROS 2 calls them: definitions, type hashes, DDS type names.

The definitions of the public packages come from rosbags, those of services from definitions.py, and the project's
own from .msg and .srv files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from dr_embedded.definitions import DEFAULTS, SERVICES

EMPTY_FIELD = ("structure_needs_at_least_one_member", (Nodetype.BASE, ("uint8", 0)))
EVENT_INFO = "service_msgs/msg/ServiceEventInfo"


def _without_char(description: Any) -> Any:
    """ROS 2 maps `char` of .msg files onto uint8, in the type hash too; rosbags keeps `char`."""
    kind, detail = description
    if kind == Nodetype.BASE:
        return (kind, ("uint8", detail[1])) if detail[0] == "char" else description
    if kind == Nodetype.NAME:
        return description
    return (kind, (_without_char(detail[0]), detail[1]))


def default_folders() -> list[Path]:
    """Folders of interface packages: `DR_INTERFACES` (separated like PATH), else the one beside this package."""
    if named := os.environ.get("DR_INTERFACES"):
        return [Path(folder) for folder in named.split(os.pathsep)]
    beside = Path(__file__).resolve().parents[2] / "dr_interfaces"
    return [beside if beside.is_dir() else Path(sys.prefix) / "share" / "dr_interfaces"]


class Interfaces:
    """All known types by full name (`pkg/msg/Name`, `pkg/srv/Name`)."""

    def __init__(self) -> None:
        self.store = get_typestore(Stores.ROS2_JAZZY)
        for name, (constants, fields) in self.store.fielddefs.items():
            self.store.fielddefs[name] = (constants, [(field, _without_char(what)) for field, what in fields])
        self.services: set[str] = set()
        self.defaults = dict(DEFAULTS)
        for name, text in SERVICES.items():
            self.add_service(name, text)
        for folder in default_folders():
            self.add_folder(folder)

    def add_message(self, name: str, text: str) -> None:
        """Register a type from the text of a .msg file (or half a .srv file)."""
        # rosbags knows no services: parsed as a message, so that relative types resolve to the package's messages.
        as_message = name.replace("/srv/", "/msg/")
        constants, fields = get_types_from_msg(text, as_message)[as_message]
        fields = [(field, _without_char(what)) for field, what in fields]
        self.store.fielddefs[name] = (constants, fields or [EMPTY_FIELD])  # type: ignore[list-item]
        defaults = {}
        for line in text.splitlines():
            words = line.split("#", 1)[0].split(maxsplit=2)
            if len(words) == 3 and "=" not in f"{words[1]}{words[2][:1]}":
                defaults[words[1]] = yaml.safe_load(words[2])
        if defaults:
            self.defaults[name] = defaults

    def add_service(self, name: str, text: str) -> None:
        """Register a service from the text of a .srv file: its request, its response and its hashed description."""
        lines = text.splitlines()
        cut = lines.index("---")
        self.add_message(f"{name}_Request", "\n".join(lines[:cut]))
        self.add_message(f"{name}_Response", "\n".join(lines[cut + 1 :]))
        request, response = (Nodetype.NAME, f"{name}_Request"), (Nodetype.NAME, f"{name}_Response")
        event = [
            ("info", (Nodetype.NAME, EVENT_INFO)),
            ("request", (Nodetype.SEQUENCE, (request, 1))),
            ("response", (Nodetype.SEQUENCE, (response, 1))),
        ]
        whole = [("request_message", request), ("response_message", response)]
        whole.append(("event_message", (Nodetype.NAME, f"{name}_Event")))
        self.store.fielddefs[f"{name}_Event"] = ([], event)  # type: ignore[assignment]
        self.store.fielddefs[name] = ([], whole)  # type: ignore[assignment]
        self.services.add(name)

    def add_folder(self, folder: Path) -> None:
        """Register every .msg and .srv file of one interface package (the folder has the package's name)."""
        for path in sorted(folder.glob("msg/*.msg")):
            self.add_message(f"{folder.name}/msg/{path.stem}", path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("srv/*.srv")):
            self.add_service(f"{folder.name}/srv/{path.stem}", path.read_text(encoding="utf-8"))

    def packages(self) -> set[str]:
        return {name.split("/")[0] for name in self.store.fielddefs}

    def names(self, package: str, kind: str) -> list[str]:
        """The types of `package` whose module is `kind` (msg or srv), without the halves of services."""
        inside = [name.split("/")[2] for name in self.store.fielddefs if name.startswith(f"{package}/{kind}/")]
        return sorted(name for name in inside if kind == "msg" or f"{package}/srv/{name}" in self.services)

    def fields(self, name: str) -> list[tuple[str, Any]]:
        return self.store.fielddefs[name][1]

    def constants(self, name: str) -> Sequence[tuple[str, str, Any]]:
        return self.store.fielddefs[name][0]

    def type_hash(self, name: str) -> str:
        """The REP-2016 hash (`RIHS01_…`) of a message, a service, or half a service."""
        return self.store.hash_rihs01(name)


@lru_cache(maxsize=1)
def interfaces() -> Interfaces:
    """The registry of this process."""
    return Interfaces()


def dds_type_name(name: str) -> str:
    """What the type is called in DDS: `std_msgs/msg/String` is `std_msgs::msg::dds_::String_`."""
    package, kind, bare = name.split("/")
    return f"{package}::{kind}::dds_::{bare}_"


def ros_type_name(dds_name: str) -> str | None:
    """The inverse of `dds_type_name`; None for a type that is not a ROS 2 one."""
    parts = dds_name.split("::")
    if len(parts) != 4 or parts[2] != "dds_" or not parts[3].endswith("_"):
        return None
    return f"{parts[0]}/{parts[1]}/{parts[3][:-1]}"
