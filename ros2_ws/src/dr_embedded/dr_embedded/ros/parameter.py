"""Parameters as Python objects, and their message forms."""

from __future__ import annotations

import array
from enum import Enum
from typing import Any

import yaml

from dr_embedded.message import message_class

PARAMETER_SEPARATOR_STRING = "."

_FIELDS = {  # ParameterValue's field by type number
    1: "bool_value",
    2: "integer_value",
    3: "double_value",
    4: "string_value",
    5: "byte_array_value",
    6: "bool_array_value",
    7: "integer_array_value",
    8: "double_array_value",
    9: "string_array_value",
}
_SCALARS: list[tuple[type, int]] = [(bool, 1), (int, 2), (float, 3), (str, 4)]  # bool is an int, so it comes first
_ELEMENTS: list[tuple[type, int]] = [(bytes, 5), (bool, 6), (int, 7), (float, 8), (str, 9)]


class Parameter:
    """A name, a type and a value."""

    class Type(Enum):
        NOT_SET = 0
        BOOL = 1
        INTEGER = 2
        DOUBLE = 3
        STRING = 4
        BYTE_ARRAY = 5
        BOOL_ARRAY = 6
        INTEGER_ARRAY = 7
        DOUBLE_ARRAY = 8
        STRING_ARRAY = 9

        @classmethod
        def from_parameter_value(cls, parameter_value: Any) -> Parameter.Type:
            """The type of a Python value; an empty list counts as bytes, as in rclpy.

            Raises:
                TypeError: no parameter can hold this value.
            """
            if parameter_value is None:
                return cls.NOT_SET
            for kind, number in _SCALARS:
                if isinstance(parameter_value, kind):
                    return cls(number)
            if isinstance(parameter_value, (list, tuple, array.array)):
                for kind, number in _ELEMENTS:
                    if all(isinstance(item, kind) for item in parameter_value):
                        return cls(number)
                raise TypeError(f"The given value is not a list of one of the allowed types '{parameter_value}'.")
            raise TypeError(f"The given value is not one of the allowed types '{parameter_value}'.")

        def check(self, parameter_value: Any) -> bool:
            """Whether a Python value fits this type."""
            if self.value == 0:
                return parameter_value is None
            if self.value < 5:
                return isinstance(parameter_value, dict((number, kind) for kind, number in _SCALARS)[self.value])
            kind = dict((number, kind) for kind, number in _ELEMENTS)[self.value]
            kinds = (list, tuple, array.array) if self.value in (7, 8) else (list, tuple)
            return isinstance(parameter_value, kinds) and all(isinstance(item, kind) for item in parameter_value)

    def __init__(self, name: str, type_: Parameter.Type | None = None, value: Any = None) -> None:
        if type_ is None:
            type_ = Parameter.Type.from_parameter_value(value)
        if not isinstance(type_, Parameter.Type):
            raise TypeError(f"type must be an instance of '{Parameter.Type!r}'")
        if not type_.check(value):
            raise ValueError(f"Type '{type_}' and value '{value}' do not agree")
        self._type_ = type_
        self._name = name
        self._value = value

    @property
    def name(self) -> str:
        return self._name

    @property
    def type_(self) -> Parameter.Type:
        return self._type_

    @property
    def value(self) -> Any:
        return self._value

    def __repr__(self) -> str:
        return f"Parameter(name={self._name!r}, type_={self._type_}, value={self._value!r})"

    def get_parameter_value(self) -> Any:
        """As rcl_interfaces/ParameterValue."""
        message = message_class("rcl_interfaces/msg/ParameterValue")(type=self._type_.value)
        if self._type_.value:
            value = list(self._value) if isinstance(self._value, tuple) else self._value
            setattr(message, _FIELDS[self._type_.value], value)
        return message

    def to_parameter_msg(self) -> Any:
        """As rcl_interfaces/Parameter."""
        return message_class("rcl_interfaces/msg/Parameter")(name=self._name, value=self.get_parameter_value())

    @classmethod
    def from_parameter_msg(cls, param_msg: Any) -> Parameter:
        kind = Parameter.Type(param_msg.value.type)
        return cls(param_msg.name, kind, parameter_value_to_python(param_msg.value))


def parameter_value_to_python(parameter_value: Any) -> Any:
    """The Python value in a rcl_interfaces/ParameterValue; None if it is not set."""
    if parameter_value.type == 0:
        return None
    if parameter_value.type not in _FIELDS:
        raise RuntimeError(f"unexpected parameter type {parameter_value.type}")
    value = getattr(parameter_value, _FIELDS[parameter_value.type])
    return list(value) if isinstance(value, (list, array.array)) else value


def get_parameter_value(string_value: str) -> Any:
    """The rcl_interfaces/ParameterValue that a string means, read as YAML."""
    try:
        value = yaml.safe_load(string_value)
        Parameter.Type.from_parameter_value(value)
    except (yaml.YAMLError, TypeError):
        value = string_value
    return Parameter("", value=string_value if value is None else value).get_parameter_value()
