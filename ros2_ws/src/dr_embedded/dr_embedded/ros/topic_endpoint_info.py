"""Who publishes or subscribes to a topic, and how."""

from __future__ import annotations

from enum import IntEnum

from dr_embedded.graph import Endpoint
from dr_embedded.interfaces import ros_type_name
from dr_embedded.ros.qos import QoSProfile, from_dds


class TopicEndpointTypeEnum(IntEnum):
    INVALID = 0
    PUBLISHER = 1
    SUBSCRIPTION = 2


class TopicEndpointInfo:
    """One publisher or subscription of a topic."""

    def __init__(self, endpoint: Endpoint, kind: TopicEndpointTypeEnum) -> None:
        self.node_name, self.node_namespace = endpoint.node
        self.topic_type: str = ros_type_name(endpoint.type_name) or endpoint.type_name
        self.topic_type_hash: str = endpoint.user_data.get("typehash", "INVALID")
        self.endpoint_type = kind
        self.endpoint_gid: list[int] = list(endpoint.gid)
        self.qos_profile: QoSProfile = from_dds(endpoint.qos)

    def __str__(self) -> str:
        gid = ".".join(f"{byte:02x}" for byte in self.endpoint_gid)
        return (
            f"Node name: {self.node_name}\nNode namespace: {self.node_namespace}\nTopic type: {self.topic_type}\n"
            f"Topic type hash: {self.topic_type_hash}\nEndpoint type: {self.endpoint_type.name}\nGID: {gid}\n"
            f"QoS profile: {self.qos_profile}"
        )
