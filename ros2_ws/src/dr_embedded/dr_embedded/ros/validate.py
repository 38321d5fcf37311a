"""Checks of names; real rclpy has one module for each."""

from dr_embedded.names import (
    expand_topic_name,
    validate_full_topic_name,
    validate_namespace,
    validate_node_name,
    validate_topic_name,
)

__all__ = [
    "expand_topic_name",
    "validate_full_topic_name",
    "validate_namespace",
    "validate_node_name",
    "validate_topic_name",
]
