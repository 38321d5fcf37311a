"""The fields of the public ROS 2 services that rosbags does not know, in the .srv format (Jazzy)."""

from __future__ import annotations

SERVICES: dict[str, str] = {
    "std_srvs/srv/Empty": "---",
    "std_srvs/srv/Trigger": "---\nbool success\nstring message",
    "std_srvs/srv/SetBool": "bool data\n---\nbool success\nstring message",
    "rcl_interfaces/srv/GetParameters": "string[] names\n---\nrcl_interfaces/ParameterValue[] values",
    "rcl_interfaces/srv/GetParameterTypes": "string[] names\n---\nuint8[] types",
    "rcl_interfaces/srv/SetParameters": (
        "rcl_interfaces/Parameter[] parameters\n---\nrcl_interfaces/SetParametersResult[] results"
    ),
    "rcl_interfaces/srv/SetParametersAtomically": (
        "rcl_interfaces/Parameter[] parameters\n---\nrcl_interfaces/SetParametersResult result"
    ),
    "rcl_interfaces/srv/ListParameters": (
        "uint64 DEPTH_RECURSIVE=0\nstring[] prefixes\nuint64 depth\n---\nrcl_interfaces/ListParametersResult result"
    ),
    "rcl_interfaces/srv/DescribeParameters": ("string[] names\n---\nrcl_interfaces/ParameterDescriptor[] descriptors"),
    "lifecycle_msgs/srv/ChangeState": "lifecycle_msgs/Transition transition\n---\nbool success",
    "lifecycle_msgs/srv/GetState": "---\nlifecycle_msgs/State current_state",
    "lifecycle_msgs/srv/GetAvailableStates": "---\nlifecycle_msgs/State[] available_states",
    "lifecycle_msgs/srv/GetAvailableTransitions": ("---\nlifecycle_msgs/TransitionDescription[] available_transitions"),
}

# Fields whose default is not zero or empty; rosbags keeps no defaults.
DEFAULTS: dict[str, dict[str, object]] = {"geometry_msgs/msg/Quaternion": {"w": 1.0}}
