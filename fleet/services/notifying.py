"""Messages of the fleet to devices: published to `devices/ID/fleet/NAME` with QoS 1, and audited without payload.

    notice = Notice(notifier, message, act, given_reason(reason))
    await registry.commit(await notice.change(registry, device))
    subscribed = await notice.deliver(registry, device)

The audit has it before the broker does, and a second time, with the code, when the broker has not taken it.
"""

import re
from collections.abc import Mapping

from msgspec import Struct, field
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.changes import AuditEntry, Change, made_by
from fleet.domain.device import NAME, Device, must_be_active, next_step
from fleet.domain.errors import Conflict, FleetError, Invalid, Refused
from fleet.domain.ports import Registry
from fleet.domain.presence import SessionFilter, SessionState
from fleet.domain.topic_policy import FLEET_TOPICS
from fleet.services.node_messages import OtherNodes
from fleet.services.publisher import Publisher

NAME_PATTERN = rf"^{NAME.pattern}(/{NAME.pattern}){{0,3}}\Z"
PAYLOAD_SIZE_MAX = 65_536
NOT_SUBSCRIBED = "not-subscribed"
"""What is said of a device for whose message nobody had subscribed: the broker keeps none of it."""


class Notifier(Struct, frozen=True):
    """By which messages reach devices."""

    publisher: Publisher
    node: str = ""
    """Whose devices alone its broker serves; "": it serves every node's."""
    others: OtherNodes = field(default_factory=OtherNodes)


class Message(Struct, frozen=True):
    """One message, for any device."""

    name: str
    """One to four levels of a topic."""
    payload: bytes = b""

    def __post_init__(self) -> None:
        """Raises: Invalid: `bad-topic`, `payload-too-large`."""
        if not re.search(NAME_PATTERN, self.name):
            levels = (
                "one to four levels of letters, digits, . _ - separated by /, each of 1 to 64, first a letter or digit"
            )
            raise Invalid("bad-topic", f"{self.name[:80]!r} is not the NAME of a message: {levels}.")
        if len(self.payload) > PAYLOAD_SIZE_MAX:
            raise Invalid("payload-too-large", f"A message has at most {PAYLOAD_SIZE_MAX} bytes.")

    def topic(self, device_id: str) -> str:
        return FLEET_TOPICS.replace("{id}", device_id).replace("#", self.name)


class Notice(Struct, frozen=True):
    """A message for devices, and by whose act they get it."""

    notifier: Notifier
    message: Message
    act: Act
    detail: Mapping[str, str]
    """What the audit says of it besides."""

    async def change(self, registry: Registry, device: Device) -> Change:
        """What is committed before `deliver`.

        Raises: Conflict: `device-STATE`, `node-silent`: `device` is not in service, or it was connected at another node
        that has a broker of its own and is not heard from.
        """
        try:
            must_be_active(device)
        except Refused as refused:
            raise Conflict(refused.code, refused.message, next_step(device)) from refused
        await self._nodes(registry, device)
        return Change(self._entry(device))

    async def deliver(self, registry: Registry, device: Device) -> bool | None:
        """As `Publisher.publish`, at each node where the device is connected; when it fails, the audit says so."""
        try:
            said = [await self._publish(registry, node, device) for node in await self._nodes(registry, device)]
        except FleetError as error:
            await registry.commit(Change(replace(self._entry(device), outcome=error.code)))
            raise
        return True if True in said else None if None in said else False

    async def _nodes(self, registry: Registry, device: Device) -> list[str]:
        """Those whose brokers are to have it: ours, where it is connected at none. Raises: Conflict (`node-silent`)."""
        here = self.notifier.node
        if not here:
            return [here]
        states: dict[SessionState, set[str]] = {each: set() for each in SessionState}
        for found in await registry.sessions(SessionFilter(device.id, is_open=True)):
            states[found.state(self.act.now)].add(found.session.node)
        if connected := states[SessionState.CONNECTED]:
            return sorted(connected)
        if (silent := states[SessionState.UNKNOWN]) and here not in silent:
            what = f"Device {device.id} was connected at {min(silent)}, which has a broker of its own and is silent."
            raise Conflict("node-silent", what, "Try again when the node is back, or the device connected.")
        return [here]

    async def _publish(self, registry: Registry, node: str, device: Device) -> bool | None:
        topic, payload, notifier = self.message.topic(device.id), self.message.payload, self.notifier
        if node == notifier.node:
            return await notifier.publisher.publish(topic, payload)
        return await notifier.others.publish(registry, node, topic, payload, self.act.now)

    def _entry(self, device: Device) -> AuditEntry:
        known = {"name": self.message.name, "bytes": str(len(self.message.payload))}
        return made_by(self.act, "device.notify", f"device {device.id}", **known, **self.detail)
