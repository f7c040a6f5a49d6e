"""A device's bytes on their way to its relay: so much in each turn of the event loop, and paid for.

    intake = Intake(relay, meter, device, session.data_received, session.close)
    reason = intake.take(data)

A read may bring more work than other sessions should wait for. What is left of it is taken up by `deliver(b"")`, in the
next turns in which the device is read.
"""

from collections.abc import Callable

from fleet.servers.gateway.close_reasons import CLIENT_GONE, CloseReason
from fleet.servers.gateway.limits.flow_control import FlowControlledTransport
from fleet.servers.gateway.limits.rates import RateMeter
from fleet.servers.gateway.relay.relay import Relay


class Intake:
    __slots__ = ("_close", "_deliver", "_device", "_is_ended", "_relay", "meter")

    def __init__(
        self,
        relay: Relay,
        meter: RateMeter,
        device: FlowControlledTransport,
        deliver: Callable[[bytes], None],
        close: Callable[[CloseReason], None],
    ) -> None:
        self._relay = relay
        self.meter = meter
        self._device = device
        self._deliver = deliver
        self._close = close
        self._is_ended = False

    def take(self, data: bytes) -> CloseReason | None:
        """Relay `data`, or as much of it as is due now. Raises: CloseSession, WireError."""
        relay, meter = self._relay, self.meter
        meter.size += len(data)
        answers = relay.answers
        relay.to_broker.feed(data)
        if relay.answers != answers or (relay.unread is not None and relay.unread.is_asked(relay.to_broker.packets)):
            self._device.pause_if_blocked()
        if meter.size > meter.budget.lease_size:
            meter.pay()
        if relay.to_broker.is_behind:
            self._device.end_turn(self._catch_up)
        return relay.closing

    def end(self) -> bool:
        """The device's connection has ended. Whether all that it has sent is relayed; the session is closed then."""
        # Not when answers wait, which nobody reads any more.
        self._is_ended = self._relay.to_broker.is_behind and not self._device.blocked
        return not self._is_ended

    def _catch_up(self) -> None:
        self._deliver(b"")
        if self._is_ended and not self._relay.to_broker.is_behind:
            self._close(CLIENT_GONE)
