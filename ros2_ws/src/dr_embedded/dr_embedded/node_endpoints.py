"""The endpoints, timers and guard conditions of a node: made, listed, destroyed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dr_embedded import names
from dr_embedded.message import is_message_class, is_service_class
from dr_embedded.ros.callback_groups import CallbackGroup
from dr_embedded.ros.client import Client
from dr_embedded.ros.clock import Clock
from dr_embedded.ros.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from dr_embedded.ros.guard_condition import GuardCondition
from dr_embedded.ros.publisher import Publisher
from dr_embedded.ros.qos import QoSProfile, as_profile, qos_profile_services_default
from dr_embedded.ros.service import Service
from dr_embedded.ros.subscription import Subscription
from dr_embedded.ros.timer import Rate, Timer


class NodeEndpoints:
    """Mixin of Node, which sets the attributes below."""

    executor: Any
    _session: Any
    _arguments: Any
    _name: str
    _namespace: str
    _clock: Clock
    _default_callback_group: CallbackGroup

    def _init_endpoints(self) -> None:
        self._publishers: list[Publisher] = []
        self._subscriptions: list[Subscription] = []
        self._services: list[Service] = []
        self._clients: list[Client] = []
        self._timers: list[Timer] = []
        self._guards: list[GuardCondition] = []

    @property
    def publishers(self) -> Iterator[Publisher]:
        yield from self._publishers

    @property
    def subscriptions(self) -> Iterator[Subscription]:
        yield from self._subscriptions

    @property
    def services(self) -> Iterator[Service]:
        yield from self._services

    @property
    def clients(self) -> Iterator[Client]:
        yield from self._clients

    @property
    def timers(self) -> Iterator[Timer]:
        yield from self._timers

    @property
    def guards(self) -> Iterator[GuardCondition]:
        yield from self._guards

    def _waitables(self) -> list[Any]:
        """Everything an executor waits for."""
        events = [one for endpoint in (*self._publishers, *self._subscriptions) for one in endpoint.event_handlers]
        return [*self._timers, *self._subscriptions, *self._services, *self._clients, *self._guards, *events]

    def _wake(self) -> None:
        if self.executor is not None:
            self.executor._entities_changed()

    def resolve_topic_name(self, topic: str, *, only_expand: bool = False) -> str:
        """The full name after expansion and remapping."""
        return self._resolve(topic, is_service=False, only_expand=only_expand)

    def resolve_service_name(self, service: str, *, only_expand: bool = False) -> str:
        return self._resolve(service, is_service=True, only_expand=only_expand)

    def _resolve(self, name: str, *, is_service: bool, only_expand: bool = False) -> str:
        names.validate_topic_name(name, is_service=is_service)
        full = names.expand_topic_name(name, self._name, self._namespace)
        names.validate_full_topic_name(full, is_service=is_service)
        return full if only_expand else self._remapped(full, is_service=is_service)

    def _remapped(self, full_name: str, *, is_service: bool = False) -> str:
        return self._arguments.remap(full_name, self._name, self._namespace, is_service=is_service)

    def create_publisher(
        self,
        msg_type: Any,
        topic: str,
        qos_profile: QoSProfile | int,
        *,
        callback_group: CallbackGroup | None = None,
        event_callbacks: PublisherEventCallbacks | None = None,
        qos_overriding_options: Any = None,
        publisher_class: type[Publisher] = Publisher,
    ) -> Publisher:
        """Publish on `topic`; a number as profile is the depth."""
        self._require_message(msg_type)
        if qos_overriding_options is not None:
            raise NotImplementedError("dr_embedded: qos_overriding_options")
        group = callback_group or self._default_callback_group
        events = event_callbacks or PublisherEventCallbacks()
        name = self.resolve_topic_name(topic)
        made = publisher_class(self, msg_type, name, as_profile(qos_profile), events, group)
        self._publishers.append(made)
        self._wake()
        return made

    def create_subscription(
        self,
        msg_type: Any,
        topic: str,
        callback: Callable[..., Any],
        qos_profile: QoSProfile | int,
        *,
        callback_group: CallbackGroup | None = None,
        event_callbacks: SubscriptionEventCallbacks | None = None,
        qos_overriding_options: Any = None,
        raw: bool = False,
    ) -> Subscription:
        """Call `callback(message)` or `callback(message, info)`; with `raw` the message is its serialised bytes."""
        self._require_message(msg_type)
        if qos_overriding_options is not None:
            raise NotImplementedError("dr_embedded: qos_overriding_options")
        group = callback_group or self._default_callback_group
        events = event_callbacks or SubscriptionEventCallbacks()
        name = self.resolve_topic_name(topic)
        made = Subscription(self, msg_type, name, callback, group, as_profile(qos_profile), raw, events)
        self._subscriptions.append(made)
        self._wake()
        return made

    def create_service(
        self,
        srv_type: Any,
        srv_name: str,
        callback: Callable[[Any, Any], Any],
        *,
        qos_profile: QoSProfile = qos_profile_services_default,
        callback_group: CallbackGroup | None = None,
    ) -> Service:
        """Answer requests with `callback(request, response)`, which returns the response."""
        self._require_service(srv_type)
        group = callback_group or self._default_callback_group
        name = self.resolve_service_name(srv_name)
        made = Service(self, srv_type, name, callback, group, qos_profile)
        self._services.append(made)
        self._wake()
        return made

    def create_client(
        self,
        srv_type: Any,
        srv_name: str,
        *,
        qos_profile: QoSProfile = qos_profile_services_default,
        callback_group: CallbackGroup | None = None,
    ) -> Client:
        self._require_service(srv_type)
        group = callback_group or self._default_callback_group
        made = Client(self, srv_type, self.resolve_service_name(srv_name), group, qos_profile)
        self._clients.append(made)
        self._wake()
        return made

    def create_timer(
        self,
        timer_period_sec: float,
        callback: Callable[[], Any] | None,
        callback_group: CallbackGroup | None = None,
        clock: Clock | None = None,
        autostart: bool = True,
    ) -> Timer:
        group = callback_group or self._default_callback_group
        made = Timer(callback, group, int(float(timer_period_sec) * 1e9), clock or self._clock, autostart=autostart)
        made._wake = self._wake
        self._timers.append(made)
        self._wake()
        return made

    def create_guard_condition(
        self, callback: Callable[[], Any] | None, callback_group: CallbackGroup | None = None
    ) -> GuardCondition:
        made = GuardCondition(self._session, callback, callback_group or self._default_callback_group)
        self._guards.append(made)
        self._wake()
        return made

    def create_rate(self, frequency: float, clock: Clock | None = None) -> Rate:
        raise NotImplementedError("dr_embedded: Node.create_rate; use a timer")

    def _require_message(self, msg_type: Any) -> None:
        if not is_message_class(msg_type):
            raise AttributeError(f"{msg_type!r} is not a ROS 2 message type")

    def _require_service(self, srv_type: Any) -> None:
        if not is_service_class(srv_type):
            raise AttributeError(f"{srv_type!r} is not a ROS 2 service type")

    def _destroy_from(self, members: list[Any], one: Any) -> bool:
        if one not in members:
            return False
        members.remove(one)
        one.destroy()
        self._wake()
        return True

    def destroy_publisher(self, publisher: Publisher) -> bool:
        return self._destroy_from(self._publishers, publisher)

    def destroy_subscription(self, subscription: Subscription) -> bool:
        return self._destroy_from(self._subscriptions, subscription)

    def destroy_service(self, service: Service) -> bool:
        return self._destroy_from(self._services, service)

    def destroy_client(self, client: Client) -> bool:
        return self._destroy_from(self._clients, client)

    def destroy_timer(self, timer: Timer) -> bool:
        return self._destroy_from(self._timers, timer)

    def destroy_guard_condition(self, guard: GuardCondition) -> bool:
        return self._destroy_from(self._guards, guard)

    def destroy_rate(self, rate: Rate) -> bool:
        raise NotImplementedError("dr_embedded: Node.destroy_rate")
