"""What `rosidl_runtime_py.utilities` gives: types by name."""

from __future__ import annotations

from dr_embedded.message import message_class, service_class


def _full(identifier: str, kind: str) -> str:
    parts = identifier.split("/")
    if len(parts) == 2:
        return f"{parts[0]}/{kind}/{parts[1]}"
    if len(parts) != 3 or parts[1] != kind:
        raise ValueError(f"Expected the full name of a {kind} interface, got '{identifier}'")
    return identifier


def get_message(identifier: str) -> type:
    """The class of `pkg/msg/Name`; LookupError if there is none."""
    return message_class(_full(identifier, "msg"))


def get_service(identifier: str) -> type:
    """The class of `pkg/srv/Name`; LookupError if there is none."""
    return service_class(_full(identifier, "srv"))


def get_interface(identifier: str) -> type:
    return get_service(identifier) if "/srv/" in identifier else get_message(identifier)


def get_action(identifier: str) -> type:
    raise NotImplementedError(f"dr_embedded: actions ({identifier})")
