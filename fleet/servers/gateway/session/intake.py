"""A device's bytes on their way to its relay: so much in each turn of the event loop, paid for, and none of a device
that may have been revoked meanwhile.

    intake = Intake(relay, meter, device, late_turns, session)
    reason = intake.take(data)

A read may bring more work than other sessions should wait for. What is left of it is taken up by
`session.data_received(b"")`, in the next turns in which the device is read.
"""

from time import monotonic
from typing import Protocol

from fleet.servers.gateway.close_reasons import CLIENT_GONE, CloseReason
from fleet.servers.gateway.events.late_turns import LateTurns
from fleet.servers.gateway.limits.flow_control import FlowControlledTransport, Pause
from fleet.servers.gateway.limits.rates import RateMeter
from fleet.servers.gateway.relay.relay import Relay


class _Session(Protocol):
    def data_received(self, data: bytes) -> None: ...

    def close(self, reason: CloseReason) -> None: ...


class Intake:
    __slots__ = (
        "_device",
        "_is_ended",
        "_is_released",
        "_is_waiting",
        "_late",
        "_packets",
        "_relay",
        "_session",
        "meter",
    )

    def __init__(
        self,
        relay: Relay,
        meter: RateMeter,
        device: FlowControlledTransport,
        late: LateTurns,
        session: _Session,
    ) -> None:
        self._relay = relay
        self._packets = relay.to_broker
        self.meter = meter
        self._device = device
        self._late = late
        self._session = session
        self._is_ended = False
        self._is_waiting = False  # for events
        self._is_released = False  # has waited for them

    def take(self, data: bytes) -> CloseReason | None:
        """Relay `data`, or as much of it as is due now. Raises: CloseSession, WireError."""
        relay, packets, meter = self._relay, self._packets, self.meter
        meter.size += len(data)
        if monotonic() > self._late.fresh_until and not self._is_released:
            self._wait(data)
            return None
        answers = relay.answers
        packets.feed(data)
        if relay.answers != answers or (relay.unread is not None and relay.unread.is_asked(relay.to_broker.packets)):
            self._device.pause_if_blocked()
        if meter.size > meter.budget.lease_size:
            meter.pay()
        if packets.is_behind:
            self._device.end_turn(self._catch_up)
        return relay.closing

    def end(self) -> bool:
        """The device's connection has ended. Whether all that it has sent is relayed; the session is closed then."""
        # Not when answers wait, which nobody reads any more.
        self._is_ended = self._packets.is_behind and not self._device.blocked
        return not self._is_ended

    def _wait(self, data: bytes) -> None:
        """Keep `data` until it is known that the device was not revoked before it was read."""
        self._packets.hold_back(data)
        self._device.pause(Pause.EVENTS_UNREAD)
        self._device.end_turn(self._catch_up)
        if not self._is_waiting:
            self._is_waiting = True
            self._late.after(self._release)

    def _release(self) -> None:
        self._is_waiting = False
        self._device.resume(Pause.EVENTS_UNREAD)
        self._is_released = self._device.is_due  # not where it waits for something else, which may take long

    def _catch_up(self) -> None:
        self._session.data_received(b"")
        self._is_released = False
        if self._is_ended and not self._packets.is_behind:
            self._session.close(CLIENT_GONE)
