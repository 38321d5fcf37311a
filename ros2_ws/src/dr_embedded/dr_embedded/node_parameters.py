"""The parameters of a node: declared with a static type, checked against descriptors, announced when they change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dr_embedded.message import message_class
from dr_embedded.ros import exceptions
from dr_embedded.ros.parameter import Parameter

NOT_SET = Parameter.Type.NOT_SET
Callback = Callable[[list[Parameter]], Any]


def result(successful: bool, reason: str = "") -> Any:
    """A rcl_interfaces/SetParametersResult."""
    return message_class("rcl_interfaces/msg/SetParametersResult")(successful=successful, reason=reason)


def out_of_range(parameter: Parameter, descriptor: Any) -> str:
    """Why the value breaks the range of the descriptor; empty if it does not."""
    value = parameter.value
    if parameter.type_ == Parameter.Type.INTEGER and descriptor.integer_range:
        limits = descriptor.integer_range[0]
        if value in (limits.from_value, limits.to_value):
            return ""
        inside = limits.from_value <= value <= limits.to_value
        on_step = not limits.step or (value - limits.from_value) % limits.step == 0
    elif parameter.type_ == Parameter.Type.DOUBLE and descriptor.floating_point_range:
        limits = descriptor.floating_point_range[0]
        if math.isclose(value, limits.from_value) or math.isclose(value, limits.to_value):
            return ""
        inside = limits.from_value <= value <= limits.to_value
        steps = (value - limits.from_value) / limits.step if limits.step else 0.0
        on_step = math.isfinite(steps) and math.isclose(steps, round(steps), abs_tol=1e-9)
    else:
        return ""
    if not inside:
        bounds = f"Min: {limits.from_value}, Max: {limits.to_value}"
        return f"Parameter {parameter.name} out of range {bounds}, value: {value}"
    if not on_step:
        return f"The parameter value for {parameter.name} is not a valid step, step: {limits.step}, value: {value}"
    return ""


class NodeParameters:
    """Mixin of Node; needs `get_clock`, `get_fully_qualified_name` and `_parameter_events`."""

    def _init_parameters(self, overrides: dict[str, Parameter], allow_undeclared: bool) -> None:
        self._parameters: dict[str, Parameter] = {}
        self._descriptors: dict[str, Any] = {}
        self._parameter_overrides = overrides
        self._allow_undeclared_parameters = allow_undeclared
        self._pre_set_callbacks: list[Callable[[list[Parameter]], list[Parameter]]] = []
        self._on_set_callbacks: list[Callback] = []
        self._post_set_callbacks: list[Callback] = []

    def declare_parameter(
        self, name: str, value: Any = None, descriptor: Any = None, ignore_override: bool = False
    ) -> Parameter:
        """Declare and initialise one parameter.

        Args:
            value: the default, or a Parameter.Type for a parameter that only an override can set.

        Raises:
            ParameterAlreadyDeclaredException, InvalidParameterException, InvalidParameterTypeException,
            InvalidParameterValueException.
        """
        if value is None and descriptor is None:
            return self.declare_parameters("", [(name,)], ignore_override)[0]
        descriptor = descriptor or message_class("rcl_interfaces/msg/ParameterDescriptor")()
        return self.declare_parameters("", [(name, value, descriptor)], ignore_override)[0]

    def declare_parameters(
        self, namespace: str, parameters: Iterable[tuple[Any, ...]], ignore_override: bool = False
    ) -> list[Parameter]:
        """Declare `(name,)`, `(name, value)` or `(name, value, descriptor)` tuples; see `declare_parameter`."""
        wanted: list[tuple[Parameter, Any]] = []
        for entry in parameters:
            name = f"{namespace}.{entry[0]}" if namespace else entry[0]
            if not isinstance(entry[0], str):
                raise TypeError(f"First element {entry[0]!r} of a parameter tuple is not a str")
            if not name or not name.strip("."):
                raise exceptions.InvalidParameterException(name)
            if name in self._parameters:
                raise exceptions.ParameterAlreadyDeclaredException([name])
            wanted.append(self._declared(name, entry[1:], ignore_override))
        for parameter, descriptor in wanted:
            answer = self._check(parameter, descriptor, declaring=True)
            if answer.successful:
                answer = self._ask_callbacks([parameter])
            if not answer.successful:
                if answer.reason.startswith("Wrong parameter type"):
                    expected = Parameter.Type(descriptor.type).name
                    raise exceptions.InvalidParameterTypeException(parameter, expected)
                raise exceptions.InvalidParameterValueException(parameter.name, parameter.value, answer.reason)
            self._descriptors[parameter.name] = descriptor
            self._store([parameter])
        return [parameter for parameter, _ in wanted]

    def _declared(self, name: str, rest: Sequence[Any], ignore_override: bool) -> tuple[Parameter, Any]:
        """The first value and the descriptor of a parameter that is being declared."""
        described = message_class("rcl_interfaces/msg/ParameterDescriptor")
        value = rest[0] if rest else None
        descriptor: Any = rest[1] if len(rest) > 1 else described(dynamic_typing=not rest)
        if not isinstance(descriptor, described):
            raise TypeError(f"Third element {descriptor!r} for {name} is not a ParameterDescriptor")
        own = described(**{field: getattr(descriptor, field) for field in descriptor.get_fields_and_field_types()})
        own.name = name
        if isinstance(value, Parameter.Type):
            if value == NOT_SET:
                raise ValueError(f"Cannot declare parameter {{{name}}} of type NOT_SET")
            own.type, value = value.value, None
        elif not own.dynamic_typing:
            kind = Parameter.Type.from_parameter_value(value)
            if kind == NOT_SET:
                raise ValueError("Cannot declare a statically typed parameter with default value of type NOT_SET")
            own.type = kind.value
        if not ignore_override and name in self._parameter_overrides:
            override = self._parameter_overrides[name]
            return Parameter(name, override.type_, override.value), own
        kind = NOT_SET if value is None else Parameter.Type.from_parameter_value(value)
        if value == [] and own.type:
            kind = Parameter.Type(own.type)
        return Parameter(name, kind, value), own

    def _check(self, parameter: Parameter, descriptor: Any, *, declaring: bool = False) -> Any:
        """What the descriptor says about a new value."""
        if descriptor.read_only and not declaring:
            return result(False, f"Trying to set a read-only parameter: {parameter.name}.")
        if descriptor.dynamic_typing:
            descriptor.type = parameter.type_.value
        elif parameter.type_ == NOT_SET and not declaring:
            return result(False, "Static parameter cannot be undeclared")
        elif parameter.type_ != NOT_SET and parameter.type_.value != descriptor.type:
            expected = Parameter.Type(descriptor.type)
            return result(False, f"Wrong parameter type, expected '{expected}' got '{parameter.type_}'")
        reason = out_of_range(parameter, descriptor)
        return result(not reason, reason)

    def _ask_callbacks(self, parameters: list[Parameter]) -> Any:
        for callback in list(self._on_set_callbacks):
            answer = callback(parameters)
            if not answer.successful:
                return answer
        return result(True)

    def _store(self, parameters: list[Parameter]) -> None:
        """Set without questions, and tell /parameter_events."""
        event: Any = message_class("rcl_interfaces/msg/ParameterEvent")()
        for parameter in parameters:
            known = self._parameters.get(parameter.name)
            if parameter.type_ == NOT_SET and known is not None and known.type_ != NOT_SET:
                event.deleted_parameters.append(parameter.to_parameter_msg())
                del self._parameters[parameter.name], self._descriptors[parameter.name]
                continue
            if parameter.type_ != NOT_SET:
                fresh = known is None or known.type_ == NOT_SET
                (event.new_parameters if fresh else event.changed_parameters).append(parameter.to_parameter_msg())
            self._parameters[parameter.name] = parameter
        self._announce_parameters(event)
        for callback in list(self._post_set_callbacks):
            callback(parameters)

    def _announce_parameters(self, event: Any) -> None:
        raise NotImplementedError

    def undeclare_parameter(self, name: str) -> None:
        self._require_declared([name])
        if self._descriptors[name].read_only:
            raise exceptions.ParameterImmutableException(name)
        del self._parameters[name], self._descriptors[name]

    def _require_declared(self, names: Iterable[str]) -> None:
        missing = [name for name in names if name not in self._parameters]
        if missing and not self._allow_undeclared_parameters:
            raise exceptions.ParameterNotDeclaredException(missing)

    def has_parameter(self, name: str) -> bool:
        return name in self._parameters

    def get_parameter(self, name: str) -> Parameter:
        """Raises ParameterNotDeclaredException or ParameterUninitializedException."""
        if name not in self._parameters:
            if self._allow_undeclared_parameters:
                return Parameter(name, NOT_SET, None)
            raise exceptions.ParameterNotDeclaredException(name)
        parameter = self._parameters[name]
        if parameter.type_ == NOT_SET and not self._descriptors[name].dynamic_typing:
            raise exceptions.ParameterUninitializedException(name)
        return parameter

    def get_parameters(self, names: list[str]) -> list[Parameter]:
        return [self.get_parameter(name) for name in names]

    def get_parameter_or(self, name: str, alternative_value: Parameter | None = None) -> Parameter:
        known = self._parameters.get(name)
        if known is None or known.type_ == NOT_SET:
            return alternative_value or Parameter(name, NOT_SET, None)
        return known

    def get_parameter_type(self, name: str) -> Parameter.Type:
        self._require_declared([name])
        return self._parameters[name].type_ if name in self._parameters else NOT_SET

    def get_parameter_types(self, names: list[str]) -> list[Parameter.Type]:
        return [self.get_parameter_type(name) for name in names]

    def get_parameters_by_prefix(self, prefix: str) -> dict[str, Parameter]:
        start = f"{prefix}." if prefix else ""
        return {name[len(start) :]: one for name, one in self._parameters.items() if name.startswith(start)}

    def set_parameters(self, parameter_list: list[Parameter]) -> list[Any]:
        """Set each on its own; returns a SetParametersResult per parameter.

        Raises:
            ParameterNotDeclaredException: before anything is set.
        """
        self._require_declared(parameter.name for parameter in parameter_list)
        return [self.set_parameters_atomically([parameter]) for parameter in parameter_list]

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> Any:
        """Set all or none; returns one SetParametersResult."""
        for change in self._pre_set_callbacks:
            parameter_list = change(parameter_list)
        self._require_declared(parameter.name for parameter in parameter_list)
        described = message_class("rcl_interfaces/msg/ParameterDescriptor")
        for parameter in parameter_list:
            descriptor: Any = self._descriptors.get(parameter.name)
            if descriptor is None:
                descriptor = described(name=parameter.name, type=parameter.type_.value, dynamic_typing=True)
                self._descriptors[parameter.name] = descriptor
            answer = self._check(parameter, descriptor)
            if not answer.successful:
                return answer
        answer = self._ask_callbacks(parameter_list)
        if answer.successful:
            self._store(parameter_list)
        return answer

    def describe_parameter(self, name: str) -> Any:
        self._require_declared([name])
        return self._descriptors.get(name) or message_class("rcl_interfaces/msg/ParameterDescriptor")()

    def describe_parameters(self, names: list[str]) -> list[Any]:
        return [self.describe_parameter(name) for name in names]

    def list_parameters(self, prefixes: list[str], depth: int) -> Any:
        """A rcl_interfaces/ListParametersResult; depth 0 is unlimited."""
        found = []
        for name in self._parameters:
            for prefix in prefixes or [""]:
                inside = name == prefix or not prefix or name.startswith(f"{prefix}.")
                rest = name[len(prefix) :].strip(".")
                if inside and (depth == 0 or rest.count(".") < depth):
                    found.append(name)
                    break
        parents = {name.rpartition(".")[0] for name in found if "." in name}
        return message_class("rcl_interfaces/msg/ListParametersResult")(names=found, prefixes=sorted(parents))

    def add_pre_set_parameters_callback(self, callback: Callable[[list[Parameter]], list[Parameter]]) -> None:
        self._pre_set_callbacks.insert(0, callback)

    def add_on_set_parameters_callback(self, callback: Callback) -> None:
        self._on_set_callbacks.insert(0, callback)

    def add_post_set_parameters_callback(self, callback: Callback) -> None:
        self._post_set_callbacks.insert(0, callback)

    def remove_pre_set_parameters_callback(self, callback: Any) -> None:
        self._pre_set_callbacks.remove(callback)

    def remove_on_set_parameters_callback(self, callback: Callback) -> None:
        self._on_set_callbacks.remove(callback)

    def remove_post_set_parameters_callback(self, callback: Callback) -> None:
        self._post_set_callbacks.remove(callback)
