"""What a node can ask about the graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dr_embedded.graph import Endpoint
from dr_embedded.interfaces import ros_type_name
from dr_embedded.names import expand_topic_name, service_of_dds, topic_in_dds, topic_of_dds, validate_full_topic_name
from dr_embedded.ros.topic_endpoint_info import TopicEndpointInfo, TopicEndpointTypeEnum

NamesAndTypes = list[tuple[str, list[str]]]


class NodeNameNonExistentError(RuntimeError):
    """No node of this name is in the graph."""


def _group(pairs: Iterable[tuple[str | None, str | None]]) -> NamesAndTypes:
    found: dict[str, set[str]] = {}
    for name, kind in pairs:
        if name is not None and kind is not None:
            found.setdefault(name, set()).add(kind)
    return sorted((name, sorted(kinds)) for name, kinds in found.items())


def _topic(endpoint: Endpoint) -> tuple[str | None, str | None]:
    return topic_of_dds(endpoint.topic), ros_type_name(endpoint.type_name)


def _service(endpoint: Endpoint, prefix: str = "r") -> tuple[str | None, str | None]:
    if not endpoint.topic.startswith(prefix):
        return None, None
    kind = ros_type_name(endpoint.type_name)
    return service_of_dds(endpoint.topic), kind.rpartition("_")[0] if kind else None


class NodeGraph:
    """Mixin of Node; needs `_session`, `get_name`, `get_namespace`, and an empty `_names_in_dds`."""

    _session: Any
    _names_in_dds: dict[str, str]

    def _endpoints(self, *, writers: bool) -> list[Endpoint]:
        return list(self._session.graph.endpoints(writers=writers))

    def get_node_names_and_namespaces(self) -> list[tuple[str, str]]:
        return self._session.graph.nodes()

    def get_node_names_and_namespaces_with_enclaves(self) -> list[tuple[str, str, str]]:
        return self._session.graph.nodes_with_enclaves()

    def get_node_names(self) -> list[str]:
        return [name for name, _ in self._session.graph.nodes()]

    def get_fully_qualified_node_names(self) -> list[str]:
        return [f"{namespace.rstrip('/')}/{name}" for name, namespace in self._session.graph.nodes()]

    def get_topic_names_and_types(self, no_demangle: bool = False) -> NamesAndTypes:
        both = self._endpoints(writers=True) + self._endpoints(writers=False)
        if no_demangle:
            return _group((one.topic, one.type_name) for one in both)
        return _group(_topic(one) for one in both)

    def get_service_names_and_types(self) -> NamesAndTypes:
        return _group(_service(one) for one in self._endpoints(writers=True) + self._endpoints(writers=False))

    def _of_node(self, name: str, namespace: str, *, writers: bool) -> list[Endpoint]:
        """Raises NodeNameNonExistentError."""
        if (name, namespace) not in self._session.graph.nodes():
            raise NodeNameNonExistentError(f"Cannot get names and types: node '{namespace}' '{name}' does not exist")
        return [one for one in self._endpoints(writers=writers) if one.node == (name, namespace)]

    def get_publisher_names_and_types_by_node(
        self, node_name: str, node_namespace: str, no_demangle: bool = False
    ) -> NamesAndTypes:
        return _group(_topic(one) for one in self._of_node(node_name, node_namespace, writers=True))

    def get_subscriber_names_and_types_by_node(
        self, node_name: str, node_namespace: str, no_demangle: bool = False
    ) -> NamesAndTypes:
        return _group(_topic(one) for one in self._of_node(node_name, node_namespace, writers=False))

    def get_service_names_and_types_by_node(self, node_name: str, node_namespace: str) -> NamesAndTypes:
        return _group(_service(one, "rq/") for one in self._of_node(node_name, node_namespace, writers=False))

    def get_client_names_and_types_by_node(self, node_name: str, node_namespace: str) -> NamesAndTypes:
        return _group(_service(one, "rr/") for one in self._of_node(node_name, node_namespace, writers=False))

    def _in_dds(self, topic_name: str) -> str:
        if (known := self._names_in_dds.get(topic_name)) is not None:
            return known
        full = expand_topic_name(topic_name, self.get_name(), self.get_namespace())  # type: ignore[attr-defined]
        validate_full_topic_name(full)
        name = topic_in_dds(self._remapped(full))  # type: ignore[attr-defined]
        self._names_in_dds[topic_name] = name
        return name

    def _on_topic(self, topic_name: str, no_mangle: bool, *, writers: bool) -> list[Endpoint]:
        name = topic_name if no_mangle else self._in_dds(topic_name)
        return [one for one in self._endpoints(writers=writers) if one.topic == name]

    def count_publishers(self, topic_name: str) -> int:
        return int(self._session.graph.count(self._in_dds(topic_name), writers=True))

    def count_subscribers(self, topic_name: str) -> int:
        return int(self._session.graph.count(self._in_dds(topic_name), writers=False))

    def get_publishers_info_by_topic(self, topic_name: str, no_mangle: bool = False) -> list[TopicEndpointInfo]:
        kind = TopicEndpointTypeEnum.PUBLISHER
        return [TopicEndpointInfo(one, kind) for one in self._on_topic(topic_name, no_mangle, writers=True)]

    def get_subscriptions_info_by_topic(self, topic_name: str, no_mangle: bool = False) -> list[TopicEndpointInfo]:
        kind = TopicEndpointTypeEnum.SUBSCRIPTION
        return [TopicEndpointInfo(one, kind) for one in self._on_topic(topic_name, no_mangle, writers=False)]
