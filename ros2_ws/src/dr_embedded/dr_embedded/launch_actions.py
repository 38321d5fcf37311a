"""What launch files are written with: the part of `launch` and `launch_ros` that runs without ROS 2.

`finder.py` serves these classes under the names of ROS 2. Values become parameters by the rules of launch_ros: the
text of a substitution is read as YAML, a plain text stays a text, `ParameterValue` says which type is meant.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

Scalar = bool | int | float | str
Value = Scalar | list[Scalar]


class LaunchError(Exception):
    """A launch file or its arguments are wrong; the message is one line."""


def refuse_others(where: str, others: Mapping[str, object]) -> None:
    """Arguments that ROS 2 knows and this layer does not."""
    for name in others:
        raise NotImplementedError(f"dr_embedded: argument {name} of {where}")


class Context:
    """The values of the launch arguments, by name."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self.launch_configurations = dict(given)


# ---- substitutions ----


class Substitution:
    """Becomes a text when the launch file runs."""

    def perform(self, context: Context) -> str:
        raise NotImplementedError(f"dr_embedded: {type(self).__name__}")


SomeText = str | Path | Substitution | Sequence[str | Substitution]


def text_of(value: SomeText, context: Context) -> str:
    """A text, a substitution, or a sequence of both, which are joined."""
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, Substitution):
        return value.perform(context)
    return "".join(text_of(part, context) for part in value)


class TextSubstitution(Substitution):
    """A text that is known already."""

    def __init__(self, *, text: str) -> None:
        self.text = text

    def perform(self, context: Context) -> str:
        return self.text


class LaunchConfiguration(Substitution):
    """The value of a launch argument."""

    def __init__(self, variable_name: str, **others: object) -> None:
        refuse_others("LaunchConfiguration", others)
        self.variable_name = variable_name

    def perform(self, context: Context) -> str:
        if self.variable_name not in context.launch_configurations:
            raise LaunchError(f"launch configuration '{self.variable_name}' does not exist")
        return context.launch_configurations[self.variable_name]


class PathJoinSubstitution(Substitution):
    """Parts of a path, joined."""

    def __init__(self, substitutions: Iterable[SomeText]) -> None:
        self.substitutions = list(substitutions)

    def perform(self, context: Context) -> str:
        return str(Path(*(text_of(part, context) for part in self.substitutions)))


class PythonExpression(Substitution):
    """The value of an expression, as a text; what `math` holds can be used."""

    def __init__(self, expression: SomeText, **others: object) -> None:
        refuse_others("PythonExpression", others)
        self.expression = expression

    def perform(self, context: Context) -> str:
        expression = text_of(self.expression, context)
        try:
            return str(eval(compile(ast.parse(expression, mode="eval"), "<launch>", "eval"), {}, vars(math)))
        except Exception as error:  # whatever the expression of a launch file can raise
            raise LaunchError(f"{expression!r} is no usable expression: {error}") from error


class FindPackageShare(Substitution):
    """The folder of a package's shared files: in a checkout that of its package.xml."""

    def __init__(self, package: SomeText) -> None:
        self.package = package

    def perform(self, context: Context) -> str:
        return str(package_share(text_of(self.package, context)))


def package_share(package: str) -> Path:
    """Where a package of this checkout, or of the Python prefix, has its launch files and configuration.

    Raises:
        LaunchError: there is none.
    """
    workspace = Path(__file__).resolve().parents[2]  # the folder of dr_embedded and its neighbours
    for folder in (workspace.parents[1], workspace / package):
        manifest = folder / "package.xml"
        if manifest.is_file() and ElementTree.parse(manifest).findtext("name") == package:
            return folder
    installed = Path(sys.prefix, "share", package)
    if (installed / "package.xml").is_file():
        return installed
    raise LaunchError(f"package '{package}' not found")


# ---- conditions ----


class IfCondition:
    """True for the texts true and 1, false for false and 0."""

    wanted = True

    def __init__(self, predicate_expression: SomeText) -> None:
        self.predicate_expression = predicate_expression

    def evaluate(self, context: Context) -> bool:
        text = text_of(self.predicate_expression, context).strip().lower()
        if text not in ("true", "1", "false", "0"):
            raise LaunchError(f"a condition must be true or false, not '{text}'")
        return (text in ("true", "1")) is self.wanted


class UnlessCondition(IfCondition):
    """The opposite of IfCondition."""

    wanted = False


# ---- parameters ----


class ParameterValue:
    """A parameter with its type: int, float, bool, str, or List[…] of one of them; None reads it as YAML."""

    def __init__(self, value: Any, *, value_type: Any = None) -> None:
        self.value, self.value_type = value, value_type

    def evaluate(self, context: Context) -> Value:
        if isinstance(self.value, bool | int | float):
            return self.value
        text = text_of(self.value, context)
        if self.value_type is None:
            return _from_yaml(text)
        if self.value_type in (str, int, float):
            return typing.cast(Scalar, self.value_type(text))
        found = yaml.safe_load(text)
        if self.value_type is bool:
            if isinstance(found, bool):
                return found
        elif isinstance(found, list) and all(type(one) is typing.get_args(self.value_type)[0] for one in found):
            return found
        raise ValueError(f"'{text}' is no {getattr(self.value_type, '__name__', self.value_type)}")


def _from_yaml(text: str) -> Value:
    found = yaml.safe_load(text)
    if isinstance(found, bool | int | float | str):
        return found
    if isinstance(found, list):
        return _uniform(found)
    raise TypeError(f"'{text}' is neither a truth value, a number, a text nor a list")


def _uniform(found: Sequence[Any]) -> list[Scalar]:
    kinds = {type(one) for one in found}
    if len(kinds) != 1 or not kinds <= {bool, int, float, str}:
        raise TypeError(f"{list(found)}: a list must hold one or more values of one type")
    return list(found)


def parameter(value: Any, context: Context) -> Value:
    """The value of one parameter of a node.

    Raises:
        TypeError, ValueError: launch_ros does not take it either.
    """
    if isinstance(value, ParameterValue):
        return value.evaluate(context)
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Substitution):
        return _from_yaml(value.perform(context))
    if not isinstance(value, Sequence):
        raise TypeError(f"unexpected type for parameter value {value!r}")
    if any(isinstance(one, Substitution) for one in value):  # parts of one text
        return _from_yaml(text_of(value, context))
    if {type(one) for one in value} == {int, float}:
        return [float(one) for one in value]
    return _uniform([_from_yaml(text_of(one, context)) if isinstance(one, list | tuple) else one for one in value])


def parameters_of(values: Mapping[str, Any], context: Context, prefix: str = "") -> Iterator[tuple[str, Value]]:
    """Name and value; nested mappings become dotted names."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from parameters_of(value, context, f"{name}.")
            continue
        try:
            yield name, parameter(value, context)
        except (TypeError, ValueError, yaml.YAMLError) as error:
            raise LaunchError(f"parameter {name}: {' '.join(str(error).split())}") from error


# ---- actions ----


class DeclareLaunchArgument:
    """An argument of the launch file."""

    def __init__(
        self,
        name: str,
        *,
        default_value: SomeText | None = None,
        description: str = "",
        choices: Sequence[str] | None = None,
        **others: object,
    ) -> None:
        refuse_others("DeclareLaunchArgument", others)
        self.name, self.default_value, self.description = name, default_value, description
        self.choices = list(choices or ())

    def execute(self, context: Context) -> None:
        """Check the value that was given, or give the default.

        Raises:
            LaunchError: a value is missing, or is not one of the choices.
        """
        values = context.launch_configurations
        if self.name not in values:
            if self.default_value is None:
                raise LaunchError(f"required launch argument '{self.name}' was not provided: {self.description}")
            values[self.name] = text_of(self.default_value, context)
        if self.choices and values[self.name] not in self.choices:
            raise LaunchError(f"{self.name} is one of {', '.join(self.choices)}, not '{values[self.name]}'")


class Shutdown:
    """Ends everything; here only as `on_exit` of a node."""

    def __init__(self, **others: object) -> None:
        refuse_others("Shutdown", others)


class Node:
    """A node in a process of its own.

    `emulate_tty` has a meaning of this layer's own: the first such node gets the launcher's standard input.
    """

    def __init__(
        self,
        *,
        package: SomeText,
        executable: SomeText,
        name: SomeText | None = None,
        namespace: SomeText | None = None,
        parameters: Sequence[Any] = (),
        remappings: Sequence[tuple[SomeText, SomeText]] = (),
        arguments: Sequence[SomeText] = (),
        prefix: SomeText = "",
        condition: IfCondition | None = None,
        on_exit: Shutdown | Sequence[Shutdown] = (),
        output: SomeText = "log",
        emulate_tty: bool = False,
        **others: object,
    ) -> None:
        refuse_others("Node", others)
        self.package, self.executable, self.name, self.namespace = package, executable, name, namespace
        self.parameters, self.remappings, self.arguments = parameters, remappings, arguments
        self.prefix, self.condition, self.emulate_tty = prefix, condition, emulate_tty
        actions = [on_exit] if isinstance(on_exit, Shutdown) else list(on_exit)
        if not all(isinstance(action, Shutdown) for action in actions):
            raise NotImplementedError("dr_embedded: on_exit of Node other than Shutdown")
        self.ends_all = bool(actions)

    def label(self, context: Context) -> str:
        """What its lines of output begin with."""
        return text_of(self.name or self.executable, context)

    def target(self, context: Context) -> str:
        """What `python -m dr_embedded.run` starts.

        Raises:
            LaunchError: no such module.
        """
        package, executable = text_of(self.package, context), text_of(self.executable, context)
        if importlib.util.find_spec(package) is None:
            raise LaunchError(f"package '{package}' not found; without ROS 2 its folder must be on PYTHONPATH")
        if importlib.util.find_spec(f"{package}.{executable}") is None:
            raise LaunchError(f"executable '{executable}' not found in package '{package}'")
        return f"{package}.{executable}:main"

    def ros_arguments(self, context: Context) -> list[str]:
        """What follows the program on its command line."""
        words = [text_of(one, context) for one in self.arguments]
        words.append("--ros-args")
        if self.name is not None:
            words += ["-r", f"__node:={text_of(self.name, context)}"]
        if self.namespace is not None:
            words += ["-r", f"__ns:=/{text_of(self.namespace, context).lstrip('/')}"]
        for one in self.parameters:
            if isinstance(one, Mapping):
                for name, value in parameters_of(one, context):
                    words += ["-p", f"{name}:={_yaml_line(value)}"]
            else:
                words += ["--params-file", text_of(one, context)]
        for source, target in self.remappings:
            words += ["-r", f"{text_of(source, context)}:={text_of(target, context)}"]
        return words


def _yaml_line(value: Value) -> str:
    line: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    return line.removesuffix("...\n").strip()


class LaunchDescription:
    """Everything that a launch file starts."""

    def __init__(self, initial_entities: Iterable[Any] = ()) -> None:
        self.entities: list[Any] = []
        for entity in initial_entities:
            self.add_action(entity)

    def add_action(self, action: Any) -> None:
        if not isinstance(action, DeclareLaunchArgument | Node):
            raise NotImplementedError(f"dr_embedded: {type(action).__name__} in a LaunchDescription")
        self.entities.append(action)

    @property
    def arguments(self) -> list[DeclareLaunchArgument]:
        return [one for one in self.entities if isinstance(one, DeclareLaunchArgument)]

    def nodes(self, context: Context) -> list[Node]:
        """Check the arguments; the nodes whose condition holds."""
        for argument in self.arguments:
            argument.execute(context)
        nodes = [one for one in self.entities if isinstance(one, Node)]
        return [one for one in nodes if one.condition is None or one.condition.evaluate(context)]


MODULES: dict[str, dict[str, Any]] = {
    "launch": {"LaunchDescription": LaunchDescription},
    "launch.actions": {"DeclareLaunchArgument": DeclareLaunchArgument, "Shutdown": Shutdown},
    "launch.conditions": {"IfCondition": IfCondition, "UnlessCondition": UnlessCondition},
    "launch.substitutions": {
        "LaunchConfiguration": LaunchConfiguration,
        "PathJoinSubstitution": PathJoinSubstitution,
        "PythonExpression": PythonExpression,
        "TextSubstitution": TextSubstitution,
    },
    "launch_ros": {},
    "launch_ros.actions": {"Node": Node},
    "launch_ros.parameter_descriptions": {"ParameterValue": ParameterValue},
    "launch_ros.substitutions": {"FindPackageShare": FindPackageShare},
}
"""What is importable, by the name of ROS 2's module."""
