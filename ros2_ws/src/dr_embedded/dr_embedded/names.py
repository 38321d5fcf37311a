"""Names in the ROS graph: what is allowed, how relative ones expand, and what they are called in DDS."""

from __future__ import annotations

import re

from dr_embedded.ros import exceptions

_NODE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOPIC_CHARACTER = re.compile(r"[A-Za-z0-9_/~{}]")


def _fault(name: str, *, topic: bool) -> tuple[str, int] | None:
    """What is wrong with a topic name (or, without `topic`, a namespace) and where."""
    if not name:
        return "must not be empty", 0
    if name.endswith("/") and name != "/":
        return "must not end with a forward slash", len(name) - 1
    if not topic and not name.startswith("/"):
        return "must be absolute, it must lead with a '/'", 0
    for index, character in enumerate(name):
        if not _TOPIC_CHARACTER.match(character) or (not topic and character in "~{}"):
            return "must not contain characters other than alphanumerics, '_', '~', '{', '}', or '/'", index
        if character == "/" and name[index + 1 : index + 2] == "/":
            return "must not contain repeated '/'", index + 1
        if character.isdigit() and (index == 0 or name[index - 1] == "/"):
            return "a part must not start with a number", index
        if character == "~" and (index > 0 or name[1:2] not in ("", "/")):
            return "'~' must be the first character and be followed by '/'", index
    if topic and name == "/":
        return "must not end with a forward slash", 0
    if re.sub(r"{(node|ns|namespace)}", "", name) != name.replace("{", "").replace("}", "") and "{" in name:
        stripped = re.sub(r"{(node|ns|namespace)}", "", name)
        if "{" in stripped or "}" in stripped:
            return "has an unknown or unbalanced substitution", name.index("{")
    return None


def validate_node_name(name: str) -> bool:
    """True, or raises InvalidNodeNameException."""
    if not _NODE.fullmatch(name):
        bad = next((i for i, c in enumerate(name) if not re.match(r"[A-Za-z0-9_]", c)), 0)
        message = "node name must start with a letter or '_' and contain only alphanumerics and '_'"
        raise exceptions.InvalidNodeNameException(name, message, bad)
    if len(name) > 255:
        raise exceptions.InvalidNodeNameException(name, "node name length must not exceed 255", 254)
    return True


def validate_namespace(namespace: str) -> bool:
    """True, or raises InvalidNamespaceException."""
    if fault := _fault(namespace, topic=False):
        raise exceptions.InvalidNamespaceException(namespace, "namespace " + fault[0], fault[1])
    return True


def validate_topic_name(name: str, *, is_service: bool = False) -> bool:
    """True, or raises InvalidTopicNameException (InvalidServiceNameException); relative names are fine."""
    if fault := _fault(name, topic=True):
        kind = exceptions.InvalidServiceNameException if is_service else exceptions.InvalidTopicNameException
        raise kind(name, f"{'service' if is_service else 'topic'} name {fault[0]}", fault[1])
    return True


def validate_full_topic_name(name: str, *, is_service: bool = False) -> bool:
    """As `validate_topic_name`, for an absolute name without substitutions."""
    validate_topic_name(name, is_service=is_service)
    if not name.startswith("/") or "{" in name:
        kind = exceptions.InvalidServiceNameException if is_service else exceptions.InvalidTopicNameException
        raise kind(name, "name must be absolute and expanded", 0)
    return True


def expand_topic_name(topic_name: str, node_name: str, node_namespace: str) -> str:
    """The absolute name: `~` is the node, relative names are in the namespace, `{node}` and `{ns}` are replaced."""
    namespace = node_namespace.rstrip("/")
    name = topic_name.replace("{node}", node_name)
    if name.startswith(("{ns}", "{namespace}")):
        name = re.sub(r"^{(ns|namespace)}/?", f"{namespace}/", name)
    name = re.sub(r"{(ns|namespace)}", namespace.lstrip("/"), name)
    if name.startswith("~"):
        return f"{namespace}/{node_name}{name[1:]}"
    return name if name.startswith("/") else f"{namespace}/{name}"


def topic_in_dds(name: str, *, plain: bool = False) -> str:
    """`/chatter` is `rt/chatter`; `plain` avoids the ROS convention."""
    return name.lstrip("/") if plain else f"rt{name}"


def request_in_dds(service: str) -> str:
    return f"rq{service}Request"


def reply_in_dds(service: str) -> str:
    return f"rr{service}Reply"


def topic_of_dds(dds_name: str) -> str | None:
    """The ROS topic behind a DDS topic; None for services and for topics of others."""
    return dds_name[2:] if dds_name.startswith("rt/") else None


def service_of_dds(dds_name: str) -> str | None:
    """The ROS service behind a request or reply topic; None for anything else."""
    for prefix, suffix in (("rq/", "Request"), ("rr/", "Reply")):
        if dds_name.startswith(prefix) and dds_name.endswith(suffix):
            return dds_name[2 : -len(suffix)]
    return None
