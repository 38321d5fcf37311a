"""Serves `rclpy`, the interface packages and, to the launcher, `launch`, where they are not really installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

HOME = "dr_embedded.ros"
ALIASES = {  # modules of rclpy that live in another one here
    "rclpy.constants": f"{HOME}.duration",
    "rclpy.expand_topic_name": f"{HOME}.validate",
    "rclpy.qos_event": f"{HOME}.event_handler",
    "rclpy.validate_full_topic_name": f"{HOME}.validate",
    "rclpy.validate_namespace": f"{HOME}.validate",
    "rclpy.validate_node_name": f"{HOME}.validate",
    "rclpy.validate_topic_name": f"{HOME}.validate",
    "rosidl_runtime_py.utilities": "dr_embedded.runtime_utilities",
}
LAUNCH_PACKAGES = ("launch", "launch_ros")
INTERFACE_SUFFIXES = ("_msgs", "_interfaces", "_srvs", "_common")


class _Maker(Loader):
    """Loads a module by calling a function that makes it."""

    def __init__(self, make: Callable[[], ModuleType]) -> None:
        self._make = make

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = self._make()
        self._own_spec = getattr(module, "__spec__", None)
        return module

    def exec_module(self, module: ModuleType) -> None:
        if self._own_spec is not None:  # a module shared under two names stays what it is
            module.__spec__ = self._own_spec


class EmbeddedFinder(MetaPathFinder):
    """Last in sys.meta_path: whatever is installed wins."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root, *rest = fullname.split(".")
        make: Callable[[], ModuleType] | None = None
        if fullname in ("rclpy", "rosidl_runtime_py"):
            make = _rclpy if root == "rclpy" else lambda: ModuleType(fullname)
        elif fullname in ALIASES:
            make = lambda: importlib.import_module(ALIASES[fullname])  # noqa: E731
        elif root == "rclpy":
            inside = f"{HOME}.{'.'.join(rest)}"
            if len(rest) > 1 or importlib.util.find_spec(inside) is None:
                raise NotImplementedError(f"dr_embedded: module {fullname}")
            make = lambda: importlib.import_module(inside)  # noqa: E731
        elif root.endswith(INTERFACE_SUFFIXES):
            make = _interface_module(root, rest)
        if make is None:
            return None
        return ModuleSpec(fullname, _Maker(make), is_package=not rest)


def _rclpy() -> ModuleType:
    """A copy, because the original has a __path__ from which Python would import the modules a second time."""
    original = importlib.import_module(HOME)
    module = ModuleType("rclpy", original.__doc__)
    hidden = {"__name__", "__path__", "__spec__", "__loader__", "__package__", "__file__", "__cached__"}
    module.__dict__.update({key: value for key, value in vars(original).items() if key not in hidden})
    return module


def _interface_module(package: str, rest: list[str]) -> Callable[[], ModuleType] | None:
    """How to make `package`, `package.msg` or `package.srv`; None for packages that nobody defines."""
    from dr_embedded.interfaces import interfaces

    if package not in interfaces().packages():
        return None
    if not rest:
        return lambda: ModuleType(package)
    if rest == ["action"]:
        raise NotImplementedError(f"dr_embedded: actions ({package}.action)")
    if rest not in (["msg"], ["srv"]) or not interfaces().names(package, rest[0]):
        return None
    return lambda: _LazyModule(package, rest[0])


class _LazyModule(ModuleType):
    """Makes classes when they are asked for: a process needs few of the hundreds."""

    def __init__(self, package: str, kind: str) -> None:
        from dr_embedded.interfaces import interfaces

        super().__init__(f"{package}.{kind}")
        self._where = (package, kind)
        self.__all__ = interfaces().names(package, kind)

    def __getattr__(self, name: str) -> Any:
        from dr_embedded.message import message_class, service_class

        package, kind = self.__dict__["_where"]
        if name not in self.__dict__["__all__"]:
            raise AttributeError(f"module '{package}.{kind}' has no attribute '{name}'")
        made = (message_class if kind == "msg" else service_class)(f"{package}/{kind}/{name}")
        setattr(self, name, made)
        return made


class LaunchFinder(MetaPathFinder):
    """First in sys.meta_path: a folder named `launch` without __init__.py, as projects have it, is importable too."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in LAUNCH_PACKAGES:
            return None
        from dr_embedded.launch_actions import MODULES

        if fullname not in MODULES:
            raise NotImplementedError(f"dr_embedded: {fullname}")
        make = lambda: _LaunchModule(fullname, MODULES[fullname])  # noqa: E731
        return ModuleSpec(fullname, _Maker(make), is_package=True)  # so that what it lacks is looked for here too


class _LaunchModule(ModuleType):
    """Names what it lacks."""

    def __init__(self, name: str, contents: dict[str, Any]) -> None:
        super().__init__(name)
        self.__dict__.update(contents)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for those
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        return importlib.import_module(f"{self.__name__}.{name}")  # raises for what is no module


def serve_launch() -> None:
    """Make `import launch` and `import launch_ros` work; after `activate()` has said that there is no ROS 2.

    Raises:
        NotImplementedError: another package of that name is installed; PyPI has an unrelated `launch`.
    """
    if any(isinstance(finder, LaunchFinder) for finder in sys.meta_path):
        return
    for package in LAUNCH_PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:  # a folder without __init__.py has no origin
            raise NotImplementedError(
                f"dr_embedded: {spec.origin} is installed and is not the {package} of a ROS 2 that works: "
                "uninstall it, or source ROS 2"
            )
    sys.meta_path.insert(0, LaunchFinder())
