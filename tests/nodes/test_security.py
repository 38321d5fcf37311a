"""The security policy: least privilege, documents that DDS-Security can read, signatures, and two real participants."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType

import pytest

from dr_core.config import load_yaml
from tests.nodes.conftest import ROOT, TIMEOUT_S

SCRIPT = ROOT / "scripts" / "security_keystore.py"
LIBRARIES = sorted(Path("/usr/lib").glob("*/libddsc.so.0debian"))
TOPICS = load_yaml(ROOT / "config" / "robots" / "sim_panda.yaml")["topics"]
COMMANDS = [f"/{TOPICS[name]}" for name in ("twist", "trajectory", "joint_positions", "joint_velocities", "gripper")]
COMMAND = f"rt{COMMANDS[0]}"
DOMAIN = random.SystemRandom().randint(1, 100)
WRONG, FOREIGN = 1000, 2000  # first numbers of writers that must not be heard


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("security_keystore", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["security_keystore"] = module
    spec.loader.exec_module(module)
    return module


security = load_script()
RULES = security.read_policy(security.POLICY)


def who(access: str, *names: str) -> set[str]:
    """The enclaves that may do this to any of the topics or services."""
    return {rule.enclave for rule in RULES if rule.access == access and rule.full() in names}


# ---- least privilege ----


def test_only_the_gate_commands_the_robot() -> None:
    assert who("publish", *COMMANDS) == {"/arm_bridge"}
    assert who("publish", "/gate_state") == {"/arm_bridge"}


def test_few_may_say_what_the_arm_should_do() -> None:
    drivers = {"/agent", "/evaluator", "/simulated/evaluator", "/teleop"}
    assert who("publish", "/desired_twist", "/desired_gripper") == drivers
    assert who("publish", "/desired_joints", "/desired_gripper_force") == set(), "nobody needs to, so nobody may"
    assert who("publish", "/deadman", "/estop") == {"/teleop"}
    for agent in ("agent", "agent_a", "agent_b"):
        assert who("publish", f"/{agent}/desired_twist") == {f"/evaluated/{agent}"}


def test_only_people_and_simulations_reset_the_gate() -> None:
    assert who("request", "/arm_bridge/reset_gate") == {"/operator", "/simulated/evaluator"}
    assert who("reply", "/arm_bridge/reset_gate") == {"/arm_bridge"}
    assert who("request", "/arm_bridge/change_state", "/arm_bridge/set_parameters") == {"/operator"}


def test_only_the_operator_has_wildcards_and_only_to_listen() -> None:
    assert {(rule.enclave, rule.access) for rule in RULES if "*" in rule.name} == {("/operator", "subscribe")}
    published = {rule.full() for rule in RULES if rule.enclave == "/operator" and rule.access == "publish"}
    assert published == {"/rosout", "/parameter_events"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("</enclaves>", ""), "mismatched tag"),
        (('path="/rig"', 'path="rig"'), "found 'rig'"),
        (('path="/rig"', 'path="/camera"'), "found '/camera'"),
        (('path="/rig"', 'path="/../rig"'), "found '/../rig'"),
        (('publish="ALLOW"', 'publish="DENY"'), "one ALLOW"),
        (('publish="ALLOW"', 'write="ALLOW"'), "one ALLOW"),
        (("<topic>reward</topic>", "<service>reward</service>"), "found 'reward'"),
        (("<topic>reward</topic>", "<topic>/</topic>"), "found '/'"),
        (('ns="/" node="rig"', 'ns="/arm" node="rig"'), "ns='/'"),
    ],
)
def test_a_policy_with_something_to_overlook_is_refused(change: tuple[str, str], words: str, tmp_path: Path) -> None:
    text = security.POLICY.read_text()
    assert change[0] in text
    (tmp_path / "policy.xml").write_text(text.replace(*change, 1))
    with pytest.raises(security.PolicyError, match=re.escape(words)):
        security.read_policy(tmp_path / "policy.xml")


# ---- documents, keys, signatures ----


def make(keystore: Path, domain: int = DOMAIN) -> Path:
    command = [sys.executable, str(SCRIPT), str(keystore), "--domain", str(domain)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return keystore


@pytest.fixture(scope="module")
def keystore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return make(tmp_path_factory.mktemp("security") / "keystore")


def authority(keystore: Path) -> Path:
    return keystore / "public" / "permissions_ca.cert.pem"


def children(parent: ET.Element, *tags: str) -> list[ET.Element]:
    """The children, which have to be exactly these in this order."""
    assert [child.tag for child in parent] == list(tags), [child.tag for child in parent]
    return list(parent)


def test_permissions_are_documents_of_dds_security(keystore: Path) -> None:
    """The rules of omg_shared_ca_permissions.xsd, by hand: elements and their order, types, nothing besides."""
    enclaves = dict.fromkeys(rule.enclave for rule in RULES)
    assert len(enclaves) == 15
    for enclave in enclaves:
        folder = keystore / "enclaves" / enclave[1:]
        (permissions,) = children(ET.parse(folder / "permissions.xml").getroot(), "permissions")
        (grant,) = children(permissions, "grant")
        assert grant.attrib == {"name": enclave}
        subject, validity, allow, default = children(grant, "subject_name", "validity", "allow_rule", "default")
        shown = security.openssl("x509", "-in", folder / "cert.pem", "-noout", "-subject", "-nameopt", "RFC2253")
        assert shown.strip() == f"subject={subject.text}" == f"subject=CN={enclave}"
        begin, end = (datetime.fromisoformat(one.text or "") for one in children(validity, "not_before", "not_after"))
        assert (end - begin).days == 365 and abs(
            (begin - datetime.now(timezone.utc).replace(tzinfo=None)).total_seconds()
        ) < 600
        domains, publish, subscribe = children(allow, "domains", "publish", "subscribe")
        assert [(one.tag, one.text) for one in domains] == [("id", str(DOMAIN))]
        for criteria, access in ((publish, "publish"), (subscribe, "subscribe")):
            (topics,) = children(criteria, "topics")
            found = [one.text or "" for one in topics]
            assert {one.tag for one in topics} == {"topic"} and len(set(found)) == len(found)
            assert all(re.fullmatch(r"(rt|rq|rr)/[\w/*]+|ros_discovery_info", name) for name in found)
            own = [rule.dds_topics() for rule in RULES if rule.enclave == enclave]
            assert set(found) - {"ros_discovery_info"} == {one[access] for one in own if access in one}
        assert default.text == "DENY"


def test_services_are_two_topics() -> None:
    server = security.Rule("/a", "arm_bridge", "reply", "~/reset_gate", "")
    client = security.Rule("/b", "other", "request", "arm_bridge/reset_gate", "")
    request, reply = "rq/arm_bridge/reset_gateRequest", "rr/arm_bridge/reset_gateReply"
    assert server.dds_topics() == {"subscribe": request, "publish": reply}
    assert client.dds_topics() == {"publish": request, "subscribe": reply}


def test_governance_leaves_nothing_open(keystore: Path) -> None:
    (rules,) = children(ET.parse(keystore / "enclaves" / "governance.xml").getroot(), "domain_access_rules")
    (rule,) = children(rules, "domain_rule")
    kinds = ("discovery_protection_kind", "liveliness_protection_kind", "rtps_protection_kind")
    switches = ("allow_unauthenticated_participants", "enable_join_access_control")
    found = {one.tag: one for one in children(rule, "domains", *switches, *kinds, "topic_access_rules")}
    assert [one.text for one in found["domains"]] == [str(DOMAIN)]
    assert [found[name].text for name in switches] == ["false", "true"]
    assert {found[name].text for name in kinds} == {"ENCRYPT"}
    (topic,) = children(found["topic_access_rules"], "topic_rule")
    protected = ("discovery_protection", "liveliness_protection", "read_access_control", "write_access_control")
    tags = [f"enable_{name}" for name in protected] + ["metadata_protection_kind", "data_protection_kind"]
    expression, *others = children(topic, "topic_expression", *tags)
    assert expression.text == "*" and [one.text for one in others] == ["true"] * 4 + ["ENCRYPT"] * 2


def test_signed_documents_verify_and_tampered_ones_do_not(keystore: Path, tmp_path: Path) -> None:
    folder = keystore / "enclaves" / "agent"
    signed, trusted = folder / "permissions.p7s", authority(keystore)
    text = security.verify(signed, trusted).replace("\r\n", "\n")
    assert text == (folder / "permissions.xml").read_text()
    security.verify(folder / "governance.p7s", trusted)
    tampered = tmp_path / "tampered.p7s"
    tampered.write_bytes(signed.read_bytes().replace(b"rt/action", COMMAND.encode()))
    assert COMMAND.encode() in tampered.read_bytes()
    with pytest.raises(security.PolicyError, match="openssl smime"):
        security.verify(tampered, trusted)
    with pytest.raises(security.PolicyError, match="openssl smime"):
        security.verify(signed, authority(make(tmp_path / "foreign")))


def test_keys_are_private_and_certificates_of_the_authority(keystore: Path) -> None:
    keys = [*keystore.rglob("*key.pem")]
    assert len(keys) == 15 + 3, "one of each enclave, the authority's with its two names"
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600 and "P-256" in security.openssl("pkey", "-in", key, "-text")
    for certificate in keystore.rglob("cert.pem"):
        security.openssl("verify", "-CAfile", authority(keystore), certificate)
    assert all(not os.readlink(one).startswith("/") for one in keystore.rglob("*") if one.is_symlink()), "it may move"


def test_an_existing_keystore_is_kept(keystore: Path) -> None:
    before = authority(keystore).read_bytes()
    done = subprocess.run([sys.executable, str(SCRIPT), str(keystore)], capture_output=True, text=True)
    assert (
        done.returncode == 2 and "expected nothing there" in done.stderr and authority(keystore).read_bytes() == before
    )


# ---- real participants ----

needs_plugins = pytest.mark.skipif(
    not LIBRARIES, reason="no DDS-Security plugins: the cyclonedds wheel has none, Debian's libddsc0debian has"
)


class SecurePeer:
    """secure_peer.py in the enclave of this folder, or without security."""

    def __init__(self, output: Path, enclave: Path | None, access: str, topic: str, first: int) -> None:
        self._output = output
        command = [sys.executable, str(ROOT / "tests" / "nodes" / "secure_peer.py"), str(LIBRARIES[0]), str(DOMAIN)]
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [*command, str(enclave or "none"), access, topic, str(first)], stdout=file, stderr=subprocess.STDOUT
            )

    def wait_for(self, words: str) -> None:
        end = time.monotonic() + TIMEOUT_S
        while words not in (said := self._output.read_text()):
            assert self.process.poll() is None or words in self._output.read_text(), said
            assert time.monotonic() < end, said
            time.sleep(0.05)

    def heard(self) -> set[int]:
        return {int(line.split()[1]) for line in self._output.read_text().splitlines() if line.startswith("heard ")}


@pytest.fixture
def join(tmp_path: Path) -> Iterator[Callable[..., SecurePeer]]:
    peers: list[SecurePeer] = []

    def start(enclave: Path | None, access: str, topic: str = COMMAND, first: int = 1) -> SecurePeer:
        peers.append(SecurePeer(tmp_path / f"{len(peers)}.out", enclave, access, topic, first))
        return peers[-1]

    yield start
    for peer in peers:
        peer.process.send_signal(signal.SIGKILL)
        peer.process.wait(TIMEOUT_S)


@needs_plugins
def test_only_allowed_participants_talk(keystore: Path, join: Callable[..., SecurePeer], tmp_path: Path) -> None:
    enclaves, foreign = keystore / "enclaves", make(tmp_path / "foreign") / "enclaves"
    robot, eavesdropper = join(enclaves / "sim_robot", "read"), join(None, "read")
    without, stranger = join(None, "write", first=WRONG), join(foreign / "arm_bridge", "write", first=FOREIGN)
    for peer in (robot, eavesdropper, without, stranger):
        peer.wait_for("ready")
    gate = join(enclaves / "arm_bridge", "write")
    gate.wait_for("ready")
    robot.wait_for("heard ")
    time.sleep(2.0)
    assert len(robot.heard()) > 10 and max(robot.heard()) < WRONG, "only the gate's commands"
    assert eavesdropper.heard() and min(eavesdropper.heard()) >= WRONG, "who has no keys hears others without keys only"
    assert max(eavesdropper.heard()) < FOREIGN


@needs_plugins
@pytest.mark.parametrize(
    ("enclave", "access", "topic"),
    [
        ("agent", "write", COMMAND),
        ("evaluated/agent", "write", "rt/desired_twist"),
        ("camera", "read", COMMAND),
        ("evaluator", "write", "rq/arm_bridge/reset_gateRequest"),
        ("operator", "write", "rt/desired_twist"),
    ],
)
def test_what_is_not_permitted_is_refused(
    enclave: str, access: str, topic: str, keystore: Path, join: Callable[..., SecurePeer]
) -> None:
    join(keystore / "enclaves" / enclave, access, topic).wait_for(f"{topic} refused")


@needs_plugins
def test_who_changes_his_permissions_does_not_get_in(
    keystore: Path, join: Callable[..., SecurePeer], tmp_path: Path
) -> None:
    own, forged = keystore / "enclaves" / "agent", tmp_path / "forged"
    shutil.copytree(own, forged)
    join(forged, "write", "rt/desired_twist").wait_for("ready")
    permissions = forged / "permissions.p7s"
    permissions.write_bytes(permissions.read_bytes().replace(b"rt/action", COMMAND.encode()))
    join(forged, "write").wait_for("participant refused")
    # Nor with those of another one, which are signed but name somebody else.
    shutil.copy(keystore / "enclaves" / "arm_bridge" / "permissions.p7s", permissions)
    join(forged, "write").wait_for("participant refused")
