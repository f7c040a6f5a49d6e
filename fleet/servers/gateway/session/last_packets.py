"""The last packets of a session: what tells each side why it ends."""

from fleet.servers.gateway.close_reasons import CloseReason
from fleet.servers.gateway.limits.flow_control import FlowControlledTransport
from fleet.servers.gateway.relay.relay import Relay
from fleet.wire.mqtt.connect import Connect, packet_size_max, refusal


def send_last_packets(
    reason: CloseReason,
    device: FlowControlledTransport,
    relay: Relay | None,
    version: int | None,
    connect: Connect | None,
) -> None:
    """Send a DISCONNECT to each side, or the CONNACK to a device that has had none, as `reason` calls for.

    `version`: of the packets to the device; None before its CONNECT.
    """
    if relay is not None:
        relay.disconnect(reason)
    is_answered = relay is not None and relay.connack is not None
    if not is_answered and version is not None and reason.connack is not None:
        device.write(refusal(reason.connack, version, reason.text, packet_size_max(connect)))
