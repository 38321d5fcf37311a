#!/usr/bin/env python3
"""Keys and signed permissions for every enclave of a policy, in the layout of SROS2, with openssl alone.

    python scripts/security_keystore.py KEYSTORE [--policy config/security/policy.xml] [--domain 0] [--days 365]

Where ROS 2 has its security tools (ros-DISTRO-sros2), they do the same: ros2 security generate_artifacts -k KEYSTORE
-p config/security/policy.xml. This one is for machines without them, and shows what the tests check. docs/security.md
says how a keystore is used. Exit status: 0 made, 2 refused.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
POLICY = ROOT / "config" / "security" / "policy.xml"
GOVERNANCE = ROOT / "config" / "security" / "governance.xml"
SCHEMA = "http://www.omg.org/spec/DDS-SECURITY/20170901/omg_shared_ca_permissions.xsd"
ENCLAVE = re.compile(r"(/[A-Za-z_][A-Za-z0-9_]*)+")
NAME = re.compile(r"(~/|/)?[A-Za-z0-9_*]+(/[A-Za-z0-9_*]+)*")
ACCESS = {"topics": ("publish", "subscribe"), "services": ("reply", "request")}
OPTIONAL = "optional:"
DISCOVERY = "ros_discovery_info"  # on it every node says which endpoints are its own
LARGEST_DOMAIN = 232


class PolicyError(Exception):
    """A policy, or the place for a keystore, that cannot be used; one line."""


@dataclass(frozen=True)
class Rule:
    """One thing that a node may do.

    Attributes:
        enclave, node: whose permission it is.
        access: publish, subscribe, reply or request.
        name: of the topic or service as the policy has it.
        optional: why not every configuration of the node uses it; empty: all do.
    """

    enclave: str
    node: str
    access: str
    name: str
    optional: str

    def full(self, namespace: str = "") -> str:
        """The absolute name, for a node in this namespace ("" is the root)."""
        if self.name.startswith("~"):
            return f"{namespace}/{self.node}{self.name[1:]}"
        return self.name if self.name.startswith("/") else f"{namespace}/{self.name}"

    def dds_topics(self) -> dict[str, str]:
        """What it means in DDS: the topics to publish and to subscribe."""
        name = self.full()
        if self.access in ("publish", "subscribe"):
            return {self.access: f"rt{name}"}
        request, reply = f"rq{name}Request", f"rr{name}Reply"
        return {"publish": request, "subscribe": reply} if self.access == "request" else {
            "publish": reply, "subscribe": request,
        }  # fmt: skip


def read_policy(path: Path) -> list[Rule]:
    """All rules of a policy whose nodes are in the root namespace.

    Raises:
        PolicyError: no such file, no XML, or something that would be overlooked.
    """
    try:
        root = ET.fromstring(
            path.read_text(encoding="utf-8"), ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
        )
    except (OSError, ET.ParseError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: {error}") from error
    rules: list[Rule] = []
    for enclave in root.iter("enclave"):
        where = enclave.get("path", "")
        if not ENCLAVE.fullmatch(where) or any(rule.enclave == where for rule in rules):
            raise PolicyError(f"{path}: expected enclaves with different names such as /camera; found '{where}'")
        for profile in enclave.iter("profile"):
            if profile.get("ns") != "/" or not profile.get("node"):
                raise PolicyError(f"{path}: {where}: expected profiles with ns='/' and node; found {profile.attrib}")
            rules += _rules_of(path, where, profile)
    if not rules:
        raise PolicyError(f"{path}: expected enclaves with profiles; found none")
    return rules


def _rules_of(path: Path, enclave: str, profile: ET.Element) -> Iterator[Rule]:
    reason = ""
    for group in profile:
        tag: Any = group.tag  # of a comment it is a function
        if tag is ET.Comment:
            words = (group.text or "").strip()
            reason = words[len(OPTIONAL) :].strip() if words.startswith(OPTIONAL) else ""
            continue
        allowed = [(access, value) for access, value in group.attrib.items() if access in ACCESS.get(group.tag, ())]
        if len(allowed) != 1 or len(group.attrib) != 1 or allowed[0][1] != "ALLOW":
            raise PolicyError(f"{path}: {enclave}: expected topics or services with one ALLOW; found {group.attrib}")
        for one in group:
            name = (one.text or "").strip()
            if one.tag != group.tag[:-1] or not NAME.fullmatch(name):
                raise PolicyError(f"{path}: {enclave}: expected a name in <{group.tag[:-1]}>; found '{name}'")
            yield Rule(enclave, profile.get("node", ""), allowed[0][0], name, reason)
        reason = ""


def permissions(rules: Sequence[Rule], domain: int, begin: datetime, end: datetime) -> str:
    """The permissions document of DDS-Security for the rules of one enclave; whatever it does not name is denied."""
    (enclave,) = {rule.enclave for rule in rules}
    topics: dict[str, set[str]] = {"publish": {DISCOVERY}, "subscribe": {DISCOVERY}}
    for rule in rules:
        for access, topic in rule.dds_topics().items():
            topics[access].add(topic)
    dds = ET.Element("dds", {
        "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance", "xsi:noNamespaceSchemaLocation": SCHEMA,
    })  # fmt: skip
    grant = ET.SubElement(ET.SubElement(dds, "permissions"), "grant", {"name": enclave})
    ET.SubElement(grant, "subject_name").text = f"CN={enclave}"
    validity = ET.SubElement(grant, "validity")
    for tag, moment in (("not_before", begin), ("not_after", end)):
        ET.SubElement(validity, tag).text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    allow = ET.SubElement(grant, "allow_rule")
    ET.SubElement(ET.SubElement(allow, "domains"), "id").text = str(domain)
    for access in ("publish", "subscribe"):
        listed = ET.SubElement(ET.SubElement(allow, access), "topics")
        for topic in sorted(topics[access]):
            ET.SubElement(listed, "topic").text = topic
    ET.SubElement(grant, "default").text = "DENY"
    ET.indent(dds)
    return ET.tostring(dds, encoding="unicode", xml_declaration=True) + "\n"


def governance(domain: int) -> str:
    """config/security/governance.xml for this domain."""
    text = GOVERNANCE.read_text(encoding="utf-8")
    return text.replace("<id>0</id>", f"<id>{domain}</id>")


# ---- keys and signatures ----


def openssl(*arguments: str | Path, text: str = "") -> str:
    """Run openssl; returns what it prints.

    Raises:
        PolicyError: it is not there, or fails.
    """
    try:
        done = subprocess.run(["openssl", *map(str, arguments)], input=text, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise PolicyError("expected the program openssl; found none; install it: apt install openssl") from error
    if done.returncode != 0:
        raise PolicyError(f"openssl {arguments[0]}: {' '.join(done.stderr.split())}")
    return done.stdout


def new_key(key: Path, request: Path, name: str) -> None:
    """A private key on the curve that DDS-Security names, and a request to certify it."""
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", key)
    subject = "/CN=" + name.replace("/", "\\/")
    openssl("req", "-new", "-sha256", "-key", key, "-subj", subject, "-out", request)


def certify(request: Path, certificate: Path, days: int, extensions: str, *signer: str | Path) -> None:
    """Turn a request into a certificate with X.509 `extensions`, signed as the options `signer` say."""
    file = request.with_suffix(".ext")
    file.write_text(extensions)
    openssl(
        "x509", "-req", "-sha256", "-days", str(days), "-extfile", file, "-in", request, "-out", certificate, *signer
    )
    file.unlink()
    request.unlink()


def sign(document: Path, signed: Path, authority: Path, key: Path) -> None:
    """S/MIME with the text in the clear, as DDS-Security reads it."""
    openssl(
        "smime", "-sign", "-text", "-md", "sha256", "-in", document, "-out", signed, "-signer", authority, "-inkey", key
    )


def verify(signed: Path, authority: Path) -> str:
    """The text of a signed document.

    Raises:
        PolicyError: it was changed, or another authority has signed it.
    """
    return openssl("smime", "-verify", "-text", "-in", signed, "-CAfile", authority)


def link(place: Path, target: Path) -> None:
    place.symlink_to(os.path.relpath(target, place.parent))


def make_keystore(keystore: Path, rules: Sequence[Rule], domain: int, days: int) -> list[str]:
    """Make a keystore with one authority; returns its enclaves.

    Raises:
        PolicyError: the folder is there already, or openssl fails.
    """
    if keystore.exists():
        raise PolicyError(f"{keystore}: expected nothing there; found a file or folder; name another place")
    os.umask(0o077)
    public, private, enclaves = (keystore / name for name in ("public", "private", "enclaves"))
    for folder in (public, private, enclaves):
        folder.mkdir(parents=True)
    authority, authority_key = public / "ca.cert.pem", private / "ca.key.pem"
    new_key(authority_key, private / "ca.req", "dr keystore")
    certify(private / "ca.req", authority, days, "basicConstraints=critical,CA:true,pathlen:1", "-key", authority_key)
    for role in ("identity_ca", "permissions_ca"):
        link(public / f"{role}.cert.pem", authority)
        link(private / f"{role}.key.pem", authority_key)
    (enclaves / "governance.xml").write_text(governance(domain))
    sign(enclaves / "governance.xml", enclaves / "governance.p7s", authority, authority_key)
    begin = datetime.now(timezone.utc).replace(microsecond=0)
    names = list(dict.fromkeys(rule.enclave for rule in rules))
    for name in names:
        folder = enclaves / name[1:]
        folder.mkdir(parents=True)
        new_key(folder / "key.pem", folder / "cert.req", name)
        signer = ("-CA", authority, "-CAkey", authority_key, "-set_serial", str(int.from_bytes(os.urandom(16), "big")))
        certify(folder / "cert.req", folder / "cert.pem", days, "basicConstraints=CA:false", *signer)
        own = [rule for rule in rules if rule.enclave == name]
        (folder / "permissions.xml").write_text(permissions(own, domain, begin, begin + timedelta(days=days)))
        sign(folder / "permissions.xml", folder / "permissions.p7s", authority, authority_key)
        for role in ("identity_ca", "permissions_ca"):
            link(folder / f"{role}.cert.pem", public / f"{role}.cert.pem")
        link(folder / "governance.p7s", enclaves / "governance.p7s")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("keystore", type=Path, help="folder to make")
    parser.add_argument("--policy", type=Path, default=POLICY)
    parser.add_argument("--domain", type=int, default=int(os.environ.get("ROS_DOMAIN_ID") or 0), help="ROS_DOMAIN_ID")
    parser.add_argument("--days", type=int, default=365, help="how long keys and permissions hold")
    options = parser.parse_args()
    if not 0 <= options.domain <= LARGEST_DOMAIN or options.days < 1:
        parser.error(f"a domain is 0 to {LARGEST_DOMAIN}, days are 1 or more")
    try:
        names = make_keystore(options.keystore, read_policy(options.policy), options.domain, options.days)
    except PolicyError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.keystore}: {len(names)} enclaves for domain {options.domain}: {', '.join(names)}")
    print(f"keep {options.keystore}/private off the robot: who has it can give himself any permission")
    return 0


if __name__ == "__main__":
    sys.exit(main())
