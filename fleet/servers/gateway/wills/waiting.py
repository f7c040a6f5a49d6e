"""Wills that wait at the broker: known here so that those of a device that may no longer publish can be cancelled.

With a Will Delay Interval the broker publishes a will only when that has passed after the end of the connection, or
when the session has ended, and not at all if the device has returned by then (MQTT 5.0, 3.1.3.2.2). Meanwhile the
device may be suspended; nothing in MQTT but a connection with its client id withdraws the will then. There is one for
each client id at most. All times are seconds of the event loop's clock.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fleet.domain.device import Device, Model
from fleet.domain.recent import Swept
from fleet.domain.topic_policy import policy_of
from fleet.services.admission import Admission, Will, will_refusal
from fleet.wire.mqtt.acks import disconnect_expiry
from fleet.wire.mqtt.codes import V5
from fleet.wire.mqtt.connect import Connack, Connect
from fleet.wire.mqtt.properties import NEVER, Property, expiry_seconds, value_of

LATE_SECONDS = 2.0  # mosquitto looks once a second which wills are due


@dataclass(frozen=True, slots=True)
class WaitingWill:
    device: Device
    tenant: str | None
    """Of the certificate of the connection that has ended, and its fingerprint."""
    fingerprint: bytes
    will: Will
    due_at: float
    session_ends_at: float
    said_at: float = math.inf
    """When it is due by the session expiry of a DISCONNECT, if the broker has accepted that."""
    left_in_order: bool = False
    """Whether the broker was asked to discard it: hardly any of these waits."""
    other_client_id: str = ""
    """Of its session at the broker, where that is not the device id."""

    @property
    def client_id(self) -> str:
        """Of its session at the broker."""
        return self.other_client_id or self.device.id

    @property
    def waits_until(self) -> float:
        """By then the broker has published it."""
        return self.due_at + LATE_SECONDS

    def seconds_left(self, now: float) -> float:
        """Until the broker may publish it, if it has not yet."""
        return min((max(0.0, at - now) for at in (self.said_at, self.due_at) if now < at + LATE_SECONDS), default=0.0)

    def allowed_by(self, model: Model, device: Device | None = None) -> bool:
        """Whether the device may publish it when its model is `model`. `device`: as it is now, with other tags."""
        refused = will_refusal(self.will, policy_of(device or self.device, model), model.rules.mqtt)
        return not refused and self.tenant in model.rules.signers


def will_of(connect: Connect) -> Will | None:
    """The will of `connect`, as far as a model's policy is concerned."""
    if connect.will is None:
        return None
    response = value_of(connect.will.properties, Property.RESPONSE_TOPIC)
    will = connect.will
    return Will(will.topic, will.retain, response if isinstance(response, str) else None, will.qos)


def may_wait(connect: Connect) -> bool:
    """Whether the will of `connect` is to be delayed: not without a session that outlives the connection."""
    delayed = connect.will is not None and value_of(connect.will.properties, Property.WILL_DELAY_INTERVAL)
    return connect.version == V5 and bool(delayed) and connect.outlives_connection


def waiting_will(
    connect: Connect, admission: Admission, tenant: str | None, connack: Connack | None, farewell: bytes, now: float
) -> WaitingWill | None:
    """The will that may wait after a connection has ended that began with `connect`, as the broker got it.

    `farewell`: the body of its DISCONNECT, b"" without one. A broker may refuse it, or a packet before it, and tells
    nobody: it proves neither that the will is discarded nor that the session ends sooner. None: no will waits.
    """
    will = will_of(connect)
    if will is None or connect.will is None or not may_wait(connect):
        return None
    properties = connect.properties if connack is None else (*connack.properties, *connect.properties)
    said = disconnect_expiry(farewell)  # 3.14.2.2.2: DISCONNECT may change the session's expiry
    expiry = max(expiry_seconds(properties) or 0.0, said or 0.0)
    asked = value_of(connect.will.properties, Property.WILL_DELAY_INTERVAL)
    delay = min(math.inf if asked == NEVER else asked, expiry) if isinstance(asked, int) else 0.0
    if not delay:
        return None
    return WaitingWill(
        admission.device,
        tenant,
        admission.credential.fingerprint,
        will,
        due_at=now + delay,
        session_ends_at=now + expiry,
        said_at=now + min(delay, said) if said else math.inf,
        other_client_id=admission.other_client_id,
    )


class WaitingWills:
    """By client id at the broker.

    `wills_max`: from there on `has_room` is False, and a session that begins has no delayed will. Those that have one
    already may still leave theirs: it never holds more than `wills_max` and as many as there are sessions.
    """

    def __init__(self, wills_max: int) -> None:
        self._max = wills_max
        self._wills: Swept[str, WaitingWill] = Swept(lambda will, now: now >= will.waits_until)
        self._others: dict[str, frozenset[str]] = {}  # by device, client ids other than its own that may have one

    def __len__(self) -> int:
        return len(self._wills)

    def __iter__(self) -> Iterator[WaitingWill]:
        return iter(tuple(self._wills.values()))

    def of_client(self, client_id: str, now: float) -> WaitingWill | None:
        will = self._wills.get(client_id)
        return will if will is not None and now < will.waits_until else None

    def of_device(self, device_id: str, now: float) -> tuple[WaitingWill, ...]:
        """All of its sessions."""
        client_ids = (device_id, *self._others.get(device_id, ()))
        return tuple(will for one in client_ids if (will := self.of_client(one, now)) is not None)

    def has_room(self, now: float) -> bool:
        """Whether the will of one more session may be delayed."""
        if len(self._wills) >= self._max:
            self._wills.sweep(now)
        return len(self._wills) < self._max

    def add(self, will: WaitingWill, now: float) -> None:
        self._wills.sweep(now)
        self._wills[will.client_id] = will
        if will.other_client_id:
            if len(self._others) > 2 * len(self._wills):  # so that it looks at each as often as any was added
                self._others = {key: left for key, ids in self._others.items() if (left := ids & self._wills.keys())}
            others = self._others.get(will.device.id, frozenset())
            self._others[will.device.id] = frozenset((*(others & self._wills.keys()), will.client_id))

    def drop(self, client_id: str) -> None:
        """Its session has returned, or its will is cancelled. Does nothing when none waits."""
        self._wills.pop(client_id, None)
