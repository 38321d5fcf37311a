"""The security policy against the real graph: every node runs, and may do exactly what it does.

Each node is started in each configuration that uses other topics or services, in a namespace of its own; what ROS then
knows of it is compared with its enclave's rules in both directions.
"""

from __future__ import annotations

import ast
import importlib.util
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if importlib.util.find_spec("gymnasium_robotics") is None:
    pytest.skip("the simulator is not installed", allow_module_level=True)

from dr_core.data.video import write_video
from dr_core.presets import PRESETS
from dr_core.rewards.model import Networks, RewardModel
from tests.nodes.conftest import ROOT, STACK, TIMEOUT_S, WORKSPACE, NodeProcess, starter
from tests.nodes.test_rig import make_rig
from tests.nodes.test_security import RULES, security

ROBOT = {"robot_file": str(ROOT / "config" / "robots" / "sim_panda.yaml")}
IMAGE = "camera/color/image_raw"
WISHES = ("action", "desired_gripper", "desired_twist")
NOT_RUN_HERE = {"with use_sim_time", "source realsense", "ROS 2 Iron and later serve it in every node"}
"""Reasons for optional rules of which no configuration is started here."""
Grants = set[tuple[str, str]]  # (access, full name)


@dataclass(frozen=True)
class Variant:
    """A configuration of a node, and the enclave that it is started in."""

    enclave: str
    module: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    remaps: Mapping[str, str] = field(default_factory=dict)


def evaluated(name: str) -> dict[str, str]:
    """What evaluate.launch.py renames."""
    return {"__node": name, **{topic: f"{name}/{topic}" for topic in WISHES}}


def recorded() -> list[str]:
    """The optional topics that the launch files give the recorder."""
    found: set[str] = set()
    for path in sorted((ROOT / "launch").glob("*.launch.py")):
        for statement in ast.parse(path.read_text()).body:
            if not isinstance(statement, ast.Assign | ast.AugAssign):
                continue
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if ast.unparse(targets[0]) in ("OPTIONAL", "TOPICS"):
                texts = [one.value for one in ast.walk(statement.value) if isinstance(one, ast.Constant)]
                found.update(word for text in texts for word in str(text).replace(",", " ").strip("[]").split())
    return sorted(found)


def variants(folder: Path) -> list[Variant]:
    torch.manual_seed(0)
    config = PRESETS["tiny"]().model
    statistics = {config.estimator.name: {"none": {"mean": 0.0, "std": 1.0}}}
    RewardModel(config, Networks(config, 1), {"tasks": ["none"], "statistics": statistics}).save(folder / "model")
    write_video(folder / "video.mp4", iter(np.zeros((30, 64, 64, 3), np.uint8)), 10.0, lossless=False)
    rig_file = {"rig_file": str(make_rig(folder / "rig"))}
    checkpoint = {"policy": "checkpoint", "checkpoint": str(ROOT / "models" / "door-close" / "agent")}
    model = {"model": str(folder / "model"), "crop": "center", "frame_rate_hz": 0.0, "success_topic": "success"}
    plan: dict[str, Any] = {**ROBOT, "success_topic": "success"}
    board = {"board": "charuco:7x5:40mm:30mm:4X4_50", "out": str(folder / "calibration"), "camera_name": "front"}
    small = {"width": 32, "height": 24, "camera_rate_hz": 1.0}
    commands = ("twist", "trajectory", "joint_positions", "joint_velocities")
    return [
        *(Variant("/arm_bridge", "arm_bridge", {**ROBOT, "command_type": one}) for one in commands),
        Variant("/agent", "agent", ROBOT),
        Variant("/agent", "agent", {**ROBOT, **checkpoint}),
        *(Variant(f"/evaluated/{name}", "agent", ROBOT, evaluated(name)) for name in ("agent", "agent_a", "agent_b")),
        *(
            Variant(f"/evaluated/{name}", "agent", {**ROBOT, **checkpoint}, evaluated(name))
            for name in ("agent", "agent_a", "agent_b")
        ),
        Variant("/evaluator", "evaluator", {**plan, "mode": "slow", "out": str(folder / "slow")}),
        Variant(
            "/evaluator",
            "evaluator",
            {**ROBOT, "mode": "shadow", "out": str(folder / "shadow"), "agents": ["agent_a", "agent_b"]},
        ),
        Variant(
            "/simulated/evaluator",
            "evaluator",
            {
                **plan,
                "mode": "full",
                "out": str(folder / "full"),
                "reset_gate": True,
                "reset_service": "sim_robot/reset",
            },
        ),
        Variant(
            "/simulated/evaluator",
            "evaluator",
            {
                **plan,
                **{"mode": "shadow", "out": str(folder / "simulated"), "agents": ["agent_a", "agent_b"]},
                **{"reset_gate": True, "reset_service": "sim_robot/reset"},
            },
        ),
        Variant("/teleop", "teleop", {**ROBOT, "source": "joy"}),
        Variant("/sim_robot", "sim_robot", {**ROBOT, **small}),
        Variant("/camera", "camera", {"path": str(folder / "video.mp4")}),
        Variant("/reward", "reward", model),
        Variant("/reward", "reward", {**model, "compressed": True}),
        Variant("/recorder", "recorder", {"directory": str(folder / "episodes"), "optional_topics": recorded()}),
        Variant("/rig", "rig", rig_file),
        Variant("/calibrate", "calibrate", {**board, **ROBOT}),
    ]


def allowed(variant: Variant, namespace: str, *, optional: bool) -> Grants:
    """What the rules of its enclave say, for a node in this namespace; with or without optional ones."""
    rules = [rule for rule in RULES if rule.enclave == variant.enclave and (optional or not rule.optional)]
    return {(rule.access, rule.full(namespace)) for rule in rules}


def real(node: Any, name: str, namespace: str) -> Grants:
    """What ROS knows of a node."""
    questions = {
        "publish": node.get_publisher_names_and_types_by_node,
        "subscribe": node.get_subscriber_names_and_types_by_node,
        "reply": node.get_service_names_and_types_by_node,
        "request": node.get_client_names_and_types_by_node,
    }
    if (name, namespace) not in node.get_node_names_and_namespaces():
        return set()
    return {(access, found) for access, ask in questions.items() for found, _ in ask(name, namespace)}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Variant, NodeProcess]]]:
    folder = tmp_path_factory.mktemp("secured")
    for start in starter(folder / "nodes"):
        yield [
            (one, start(one.module, namespace=f"secured_{number}", remaps=dict(one.remaps), **one.parameters))
            for number, one in enumerate(variants(folder))
        ]


def unused(seen: Sequence[tuple[Variant, str, Grants]]) -> list[str]:
    """What a node may do and does not: required rules by configuration, optional ones by enclave."""
    found = []
    used: dict[str, Grants] = {}
    for variant, namespace, grants in seen:
        missing = sorted(allowed(variant, namespace, optional=False) - grants)
        found += [f"{variant.enclave} as {dict(variant.parameters)}: {one}" for one in missing]
        own = {(access, full.removeprefix(namespace)) for access, full in grants}
        used[variant.enclave] = used.get(variant.enclave, set()) | own
    for rule in RULES:
        exercised = rule.optional and rule.enclave != "/operator" and rule.optional not in NOT_RUN_HERE
        if exercised and (rule.access, rule.full()) not in used[rule.enclave]:
            found.append(f"no configuration needs {rule}")
    return found


def test_every_node_may_do_exactly_what_it_does(
    started: list[tuple[Variant, NodeProcess]], node: Any, spin_until: Any
) -> None:
    from std_msgs.msg import String

    for variant, process in started:
        if variant.enclave == "/recorder":  # it subscribes to what is published
            for topic in (IMAGE, *recorded()):
                if not topic.startswith("/"):  # those of the robot are published
                    node.create_publisher(String, process.topic(topic), 1)

    def look() -> list[tuple[Variant, str, Grants]]:
        named = [(one, one.remaps.get("__node", one.module), f"/{process.namespace}") for one, process in started]
        return [(one, namespace, real(node, name, namespace)) for one, name, namespace in named]

    seen = look()
    end = time.monotonic() + TIMEOUT_S
    while unused(seen) and time.monotonic() < end:
        pause = time.monotonic() + 0.5
        assert spin_until(lambda pause=pause: time.monotonic() > pause, node)
        seen = look()
    refused = [process.output()[-500:] for _, process in started if "refused" in process.output()]
    assert not unused(seen), "may do, but does not:\n" + "\n".join([*unused(seen), *refused])
    for variant, namespace, grants in seen:
        forbidden = sorted(grants - allowed(variant, namespace, optional=True))
        assert not forbidden, f"{variant.enclave} as {dict(variant.parameters)}: does, but may not: {forbidden}"


def test_every_node_has_an_enclave_and_a_configuration_here(tmp_path: Path) -> None:
    setup = (WORKSPACE / "dr_nodes" / "setup.py").read_text()
    (nodes,) = [
        ast.literal_eval(statement.value)
        for statement in ast.parse(setup).body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "NODES"
    ]
    there = variants(tmp_path)
    assert {one.module for one in there} == set(nodes)
    assert {one.enclave for one in there} | {"/operator"} == {rule.enclave for rule in RULES}
    assert security.POLICY.is_file()


def test_the_recorder_may_hear_what_the_launch_files_record() -> None:
    own = [
        rule for rule in RULES if rule.enclave == "/recorder" and rule.access == "subscribe" and rule.name != "/clock"
    ]
    assert {rule.full() for rule in own} == {f"/{name.lstrip('/')}" for name in [IMAGE, *recorded()]}


@pytest.mark.parametrize(
    ("file", "given", "expected"),
    [
        ("sim_demo", "model:=m directory:=d", "sim_robot arm_bridge agent reward recorder"),
        ("record", "directory:=d robot_file:=r teleop:=joy", "camera teleop arm_bridge recorder"),
        ("reward", "model:=m", "camera reward"),
        ("calibrate", "step:=hand-eye robot_file:=r teleop:=joy directory:=d", ""),
        (
            "evaluate",
            "sim:=true policy_b:=scripted model:=m",
            "sim_robot arm_bridge evaluated/agent_a evaluated/agent_b recorder reward simulated/evaluator",
        ),
        (
            "evaluate",
            "robot_file:=r mode:=shadow teleop:=joy",
            "arm_bridge evaluated/agent teleop recorder evaluator",
        ),
    ],
)
def test_launch_files_name_the_enclaves(file: str, given: str, expected: str) -> None:
    if STACK != "embedded":
        pytest.skip("the launcher of the stand-in is asked what it would start")
    from dr_embedded.finder import serve_launch
    from dr_embedded.launch import given_arguments, load, programs_of

    serve_launch()
    description = load(str(ROOT / "launch" / f"{file}.launch.py"))
    commands = [one.command for one in programs_of(description, given_arguments(given.split(), description))]
    enclaves = [command[command.index("--enclave") + 1] for command in commands]
    assert set(enclaves) <= {rule.enclave for rule in RULES} and len(set(enclaves)) == len(commands) > 1
    for command, enclave in zip(commands, enclaves, strict=True):
        (name,) = [word.removeprefix("__node:=") for word in command if word.startswith("__node:=")]
        assert {rule.node for rule in RULES if rule.enclave == enclave} == {name}
    assert not expected or enclaves == [f"/{one}" for one in expected.split()]
