"""The services by which others see and set the parameters of a node."""

from __future__ import annotations

from typing import Any

from dr_embedded.message import service_class
from dr_embedded.node_parameters import result
from dr_embedded.ros import exceptions
from dr_embedded.ros.parameter import Parameter
from dr_embedded.ros.qos import qos_profile_parameters

_UNKNOWN = (exceptions.ParameterNotDeclaredException, exceptions.ParameterUninitializedException)


class ParameterServices:
    """Makes the six services of `node`."""

    def __init__(self, node: Any) -> None:
        self._node = node
        for service, name, callback in (
            ("DescribeParameters", "describe_parameters", self._describe),
            ("GetParameters", "get_parameters", self._get),
            ("GetParameterTypes", "get_parameter_types", self._types),
            ("ListParameters", "list_parameters", self._list),
            ("SetParameters", "set_parameters", self._set),
            ("SetParametersAtomically", "set_parameters_atomically", self._set_atomically),
        ):
            kind = service_class(f"rcl_interfaces/srv/{service}")
            node.create_service(kind, f"~/{name}", callback, qos_profile=qos_profile_parameters)

    def _describe(self, request: Any, response: Any) -> Any:
        try:
            response.descriptors = self._node.describe_parameters(request.names)
        except _UNKNOWN:
            response.descriptors = []
        return response

    def _get(self, request: Any, response: Any) -> Any:
        try:
            response.values = [one.get_parameter_value() for one in self._node.get_parameters(request.names)]
        except _UNKNOWN:
            response.values = []
        return response

    def _types(self, request: Any, response: Any) -> Any:
        try:
            response.types = [one.value for one in self._node.get_parameter_types(request.names)]
        except _UNKNOWN:
            response.types = []
        return response

    def _list(self, request: Any, response: Any) -> Any:
        response.result = self._node.list_parameters(request.prefixes, request.depth)
        return response

    def _set(self, request: Any, response: Any) -> Any:
        response.results = [self._apply([message]) for message in request.parameters]
        return response

    def _set_atomically(self, request: Any, response: Any) -> Any:
        response.result = self._apply(request.parameters)
        return response

    def _apply(self, messages: list[Any]) -> Any:
        try:
            return self._node.set_parameters_atomically([Parameter.from_parameter_msg(one) for one in messages])
        except exceptions.ParameterNotDeclaredException as problem:
            return result(False, str(problem))
