"""Exceptions with the names that user code catches; also what real rclpy takes from its C extension."""

from __future__ import annotations


class RCLError(RuntimeError):
    """A failure below the Python API."""


class UnknownROSArgsError(RuntimeError):
    """An argument after --ros-args is not known."""


class InvalidHandle(Exception):
    """The object was destroyed already."""


class NotInitializedException(Exception):
    """Something needs rclpy.init() first."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__("rclpy.init() has not been called" + (f": {message}" if message else ""))


class NoTypeSupportImportedException(Exception):
    """Never raised here; the name is part of the API."""


class NameValidationException(Exception):
    """A name breaks a rule; shows the offending character."""

    def __init__(self, name_type: str, name: str, error_msg: str, invalid_index: int) -> None:
        super().__init__(f"Invalid {name_type}: {error_msg}:\n  '{name}'\n   {' ' * invalid_index}^")


class InvalidNamespaceException(NameValidationException):
    def __init__(self, name: str, error_msg: str, invalid_index: int) -> None:
        super().__init__("namespace", name, error_msg, invalid_index)


class InvalidNodeNameException(NameValidationException):
    def __init__(self, name: str, error_msg: str, invalid_index: int) -> None:
        super().__init__("node name", name, error_msg, invalid_index)


class InvalidTopicNameException(NameValidationException):
    def __init__(self, name: str, error_msg: str, invalid_index: int) -> None:
        super().__init__("topic name", name, error_msg, invalid_index)


class InvalidServiceNameException(NameValidationException):
    def __init__(self, name: str, error_msg: str, invalid_index: int) -> None:
        super().__init__("service name", name, error_msg, invalid_index)


class ParameterException(Exception):
    """Base of the parameter errors."""

    def __init__(self, error_msg: str, parameters: object) -> None:
        super().__init__(f"{error_msg}: {parameters}")


class ParameterNotDeclaredException(ParameterException):
    def __init__(self, parameters: object) -> None:
        super().__init__("Invalid access to undeclared parameter(s)", parameters)


class ParameterAlreadyDeclaredException(ParameterException):
    def __init__(self, parameters: object) -> None:
        super().__init__("Parameter(s) already declared", parameters)


class InvalidParameterException(ParameterException):
    def __init__(self, parameter_name: str) -> None:
        super().__init__("Invalid parameter name", parameter_name)


class InvalidParameterTypeException(ParameterException):
    """A statically typed parameter was given a value of another type."""

    def __init__(self, desired_parameter: object, expected_type: object) -> None:
        name, value = getattr(desired_parameter, "name", ""), getattr(desired_parameter, "value", None)
        kind = getattr(getattr(desired_parameter, "type_", None), "name", "")
        super().__init__(f"Trying to set '{name}' to '{value}' of type '{kind}', expecting '{expected_type}'", name)


class InvalidParameterValueException(ParameterException):
    def __init__(self, parameter: str, value: object, reason: str) -> None:
        super().__init__(f"Invalid parameter value ({value}) for parameter. Reason: {reason}", parameter)


class ParameterImmutableException(ParameterException):
    def __init__(self, parameter_name: str) -> None:
        super().__init__("Attempted to modify read-only parameter", parameter_name)


class ParameterUninitializedException(ParameterException):
    def __init__(self, parameter_name: str) -> None:
        super().__init__("The parameter is not initialized", parameter_name)


class ROSInterruptException(Exception):
    def __init__(self) -> None:
        super().__init__("rclpy.shutdown() has been called")
