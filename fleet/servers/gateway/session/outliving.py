"""What outlives a connection that has ended: the broker's session, and a will that waits."""

import asyncio
from dataclasses import replace

from fleet.domain.peer import Peer
from fleet.servers.gateway.close_reasons import CloseReason
from fleet.servers.gateway.relay.relay import Relay
from fleet.servers.gateway.session.context import S, SessionContext
from fleet.servers.gateway.wills.waiting import waiting_will
from fleet.services.admission import Admission
from fleet.wire.mqtt.connect import Connect


def keep_what_outlives(
    context: SessionContext[S], relay: Relay, reason: CloseReason, connect: Connect, admission: Admission, peer: Peer
) -> None:
    """The connection of `relay` has ended for `reason`."""
    context.kept_filters.clients.ended(admission.client_id, relay.in_flight.session_seconds)
    if relay.may_leave_will(reason):
        now, farewell = asyncio.get_running_loop().time(), relay.farewell or b""
        if will := waiting_will(connect, admission, peer.tenant, relay.connack, farewell, now):
            context.wills.add(replace(will, left_in_order=relay.left_in_order), now)
