"""Nodes that the conformance tests run in another process: `peers.py ROLE [arguments]`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

if find_spec("rclpy") is None:
    import dr_embedded

    dr_embedded.activate()

import rclpy
from rcl_interfaces.msg import IntegerRange, ParameterDescriptor
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import SetBool


class Echo(Node):
    """Answers on topics and services, and has parameters."""

    def __init__(self) -> None:
        super().__init__("echo", namespace="peer")
        self.pong = self.create_publisher(String, "/pong", 200)
        self.create_subscription(String, "/ping", lambda message: self.pong.publish(message), 200)
        self.numbers = self.create_publisher(Float64MultiArray, "/numbers_back", 10)
        self.create_subscription(Float64MultiArray, "/numbers", lambda m: self.numbers.publish(m), 10)
        latched = QoSProfile(depth=2, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.latched = self.create_publisher(String, "/latched", latched)
        for text in ("first", "second", "third"):
            self.latched.publish(String(data=text))
        self.late_best_effort = self.create_publisher(String, "/sensor", qos_profile_sensor_data)
        self.create_service(SetBool, "~/negate", self.negate)
        self.create_service(SetBool, "~/say", self.say)
        limits = ParameterDescriptor(integer_range=[IntegerRange(from_value=0, to_value=10, step=2)])
        self.declare_parameter("even", 4, limits)
        self.declare_parameter("name", "nobody")
        self.declare_parameter("fixed", 1.5, ParameterDescriptor(read_only=True))

    def negate(self, request: Any, response: Any) -> Any:
        response.success = not request.data
        response.message = "negated"
        return response

    def say(self, request: Any, response: Any) -> Any:
        self.get_logger().warning("said aloud")
        response.success = True
        return response


class Managed(LifecycleNode):
    """Fails to activate when told so by a parameter, and raises when told so."""

    def __init__(self) -> None:
        super().__init__("managed", namespace="peer")
        self.declare_parameter("on_activate", "succeed")
        self.beat = self.create_lifecycle_publisher(String, "/beat", 10)
        self.create_timer(0.05, lambda: self.beat.publish(String(data="beat")))

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        wish = self.get_parameter("on_activate").value
        if wish == "raise":
            raise ValueError("asked to")
        if wish == "fail":
            return TransitionCallbackReturn.FAILURE
        return super().on_activate(state)


def spin(*nodes: Node) -> None:
    executor = SingleThreadedExecutor()
    for node in nodes:
        executor.add_node(node)
    executor.create_task(lambda: print("ready", flush=True))
    try:
        executor.spin()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    except ExternalShutdownException:
        print("waiting ended", flush=True)
    finally:
        for node in nodes:
            node.destroy_node()
        rclpy.try_shutdown()
    print("all is ended", flush=True)


def plain(name: str = "plain") -> None:
    """A node that only says who it is; takes remapping and parameters from its command line."""
    rclpy.init()
    node = Node(name)
    node.declare_parameter("rate", 1.0)
    node.declare_parameter("nested.word", "default")
    publisher = node.create_publisher(String, "out", 10)
    print(f"name={node.get_fully_qualified_name()} out={publisher.topic_name}", flush=True)
    print(f"rate={node.get_parameter('rate').value} word={node.get_parameter('nested.word').value}", flush=True)
    spin(node)


if __name__ == "__main__":
    role = sys.argv[1]
    if role == "plain":
        plain()
    else:
        rclpy.init()
        spin(Echo(), Managed())
