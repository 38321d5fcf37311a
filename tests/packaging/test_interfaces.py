"""dr_interfaces, as far as it can be judged without the message generators of ROS 2."""

from __future__ import annotations

import keyword
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

# ISO C11 and C++20; the generated structs have the fields as members.
C_KEYWORDS = set(
    re.findall(
        r"\w+",
        """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t class compl
    concept const consteval constexpr constinit const_cast continue co_await co_return co_yield decltype default delete
    do double dynamic_cast else enum explicit export extern false float for friend goto if inline int long mutable
    namespace new noexcept not not_eq nullptr operator or or_eq private protected public register reinterpret_cast
    requires restrict return short signed sizeof static static_assert static_cast struct switch template this
    thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor
    xor_eq
""",
    )
)
# OMG IDL 4.2, table 7-6, in lower case: in IDL a name may not differ from a keyword in case only.
IDL_KEYWORDS = set(
    re.findall(
        r"\w+",
        """
    abstract any alias attribute bitfield bitmask bitset boolean case char component connector const consumes context
    custom default double emits enum eventtype exception factory false finder fixed float getraises home import
    in inout interface int8 int16 int32 int64 local long manages map mirrorport module multiple native object octet
    oneway out port porttype primarykey private provides public publishes raises readonly sequence setraises short
    string struct supports switch true truncatable typedef typeid typename typeprefix uint8 uint16 uint32 uint64
    union unsigned uses valuebase valuetype void wchar wstring
""",
    )
)
# Of rosidl's parser, so that a wrong name shows here and not first on the robot.
FIELD_NAME = re.compile(r"(?!.*__)(?!.*_$)[a-z][a-z0-9_]*")
CONSTANT_NAME = re.compile(r"(?!.*__)(?!.*_$)[A-Z][A-Z0-9_]*")
UNITS = re.compile(r"\b(seconds|nats|dimensionless|count|bytes|0 to 1|0 or 1|messages|constants|GateState)\b")
NUMBER = re.compile(r"(u?int\d+|float\d+)")
# What the generated code and its users include; some of it defines macros (stderr, NAN, errno).
HEADERS = ("stdio.h", "stdlib.h", "stdint.h", "string.h", "errno.h", "math.h", "signal.h", "assert.h", "limits.h")


@dataclass(frozen=True)
class Field:
    kind: str
    name: str
    comment: str
    constant: bool


def fields_of(text: str) -> list[Field]:
    """Every field and constant of a definition (or half a service), with the comment on its line."""
    found = []
    for line in text.splitlines():
        code, _, comment = line.partition("#")
        if words := code.split():
            name, _, value = words[1].partition("=")
            found.append(Field(words[0], name, comment.strip(), bool(value)))
    return found


@pytest.fixture(scope="module")
def package(repository: Path) -> Path:
    return repository / "ros2_ws" / "src" / "dr_interfaces"


@pytest.fixture(scope="module")
def definitions(package: Path) -> dict[str, str]:
    """The text of each message, and of each half of a service, by name."""

    def parts() -> Iterator[tuple[str, str]]:
        for path in sorted(package.glob("msg/*.msg")):
            yield path.stem, path.read_text(encoding="utf-8")
        for path in sorted(package.glob("srv/*.srv")):
            request, _, response = path.read_text(encoding="utf-8").partition("\n---\n")
            yield f"{path.stem}_Request", request
            yield f"{path.stem}_Response", response

    return dict(parts())


def test_every_definition_parses_and_its_types_exist(definitions: dict[str, str]) -> None:
    store = get_typestore(Stores.ROS2_HUMBLE)
    for name, text in definitions.items():
        store.register(get_types_from_msg(text, f"dr_interfaces/msg/{name}"))
    for name, text in definitions.items():
        parsed = store.types[f"dr_interfaces/msg/{name}"]
        fields = [field.name for field in fields_of(text) if not field.constant]
        assert list(parsed.__dataclass_fields__)[: len(fields)] == fields, name
        assert store.generate_msgdef(f"dr_interfaces/msg/{name}", ros_version=2)[1], "a hash needs every nested type"


def test_cmake_and_the_manifest_name_what_is_there(package: Path, definitions: dict[str, str]) -> None:
    cmake = (package / "CMakeLists.txt").read_text(encoding="utf-8")
    files = {path.relative_to(package).as_posix() for path in package.glob("*/*") if path.suffix in (".msg", ".srv")}
    assert len(files) >= 7 and sorted(re.findall(r'"(\w+/\w+\.\w+)"', cmake)) == sorted(files)
    kinds = {field.kind for text in definitions.values() for field in fields_of(text)}
    used = {kind.split("/")[0] for kind in kinds if "/" in kind}
    # A Header begins with a builtin_interfaces/Time.
    needed = used | {"builtin_interfaces"}
    declared = set(re.search(r"DEPENDENCIES ([\w ]+)", cmake).group(1).split())  # type: ignore[union-attr]
    assert declared == needed
    assert needed <= set(re.findall(r"find_package\((\w+) REQUIRED\)", cmake))
    manifest = ElementTree.parse(package / "package.xml").getroot()
    assert {element.text for element in manifest.findall("depend")} == needed
    assert manifest.findtext("member_of_group") == "rosidl_interface_packages"
    assert [element.text for element in manifest.findall("exec_depend")] == ["rosidl_default_runtime"]
    assert "rosidl_default_generators" in {element.text for element in manifest.findall("buildtool_depend")}


def test_names_are_free_in_every_language_they_are_generated_for(definitions: dict[str, str]) -> None:
    taken = C_KEYWORDS | IDL_KEYWORDS | set(keyword.kwlist)
    wrong = []
    for where, text in definitions.items():
        for field in fields_of(text):
            pattern = CONSTANT_NAME if field.constant else FIELD_NAME
            if not pattern.fullmatch(field.name) or field.name.lower() in taken:
                wrong.append(f"{where}.{field.name}")
    assert wrong == []


@pytest.mark.parametrize(("language", "compiler"), [("c", "cc"), ("c++", "c++")])
def test_names_compile_as_members_after_the_usual_headers(
    definitions: dict[str, str], tmp_path: Path, language: str, compiler: str
) -> None:
    """Some names are macros, such as stderr: in glibc it stands for itself and so is harmless."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    lines = [f"#include <{header}>" for header in HEADERS]
    for where, text in definitions.items():
        names = [field.name for field in fields_of(text) if not field.constant]
        lines.append(f"struct {where} {{ {' '.join(f'float {name};' for name in names)} }};")
        lines.append(f"void set_{where}(struct {where} * message, float value) {{")
        lines += [f"  message->{name} = value;" for name in names]
        lines.append("}")
    source = tmp_path / "names.txt"
    source.write_text("\n".join(lines) + "\n")
    command = [compiler, "-x", language, "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_field_says_what_it_is_and_every_number_its_unit(definitions: dict[str, str]) -> None:
    bare = [f"{where}.{field.name}" for where, text in definitions.items() for field in fields_of(text)
            if not field.comment]  # fmt: skip
    assert bare == []
    without_unit = [f"{where}.{field.name}" for where, text in definitions.items() for field in fields_of(text)
                    if NUMBER.match(field.kind) and not field.constant and not UNITS.search(field.comment)]  # fmt: skip
    assert without_unit == []
