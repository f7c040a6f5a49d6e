"""Ending the sessions of a gateway one after the other, so that its clients do not come back all at once."""

import asyncio

from fleet.servers.gateway.close_reasons import CloseReason
from fleet.servers.gateway.session.phases import Phase
from fleet.servers.gateway.session.registry import SessionRegistry
from fleet.servers.gateway.session.session import Session

TICK_SECONDS = 0.02
PACKET_SECONDS_MAX = 3.0  # for one that has begun: a drain does not wait for a device that trickles it


async def drain(sessions: SessionRegistry[Session], seconds: float, reason: CloseReason) -> None:
    """Close `sessions` for `reason`, spread evenly over `seconds`; those that begin meanwhile too.

    One whose CONNECT is being answered, or in the midst of a packet, is left to the close: no DISCONNECT could
    have the broker discard its will.
    """
    clock = asyncio.get_running_loop().time
    ends_at, due = clock() + seconds, 0.0
    while (left := ends_at - clock()) > 0:
        await asyncio.sleep(min(TICK_SECONDS, left))
        due = min(due + len(sessions) * TICK_SECONDS / left, len(sessions))
        for session in sessions:
            if due < 1:
                break
            if session.is_between_packets:
                session.close(reason)
                due -= 1
    end_the_rest(sessions, reason)


async def drain_wholly(sessions: SessionRegistry[Session], seconds: float, reason: CloseReason) -> None:
    """The same; then each as soon as it is between packets, and at once those whose devices do not read: the packet in
    whose midst they are may have no end. So may one that a device sends: it is cut after PACKET_SECONDS_MAX.
    """
    await drain(sessions, seconds, reason)
    cut_at = asyncio.get_running_loop().time() + PACKET_SECONDS_MAX
    while sessions:
        end_the_rest(sessions, reason, stuck=True)
        if asyncio.get_running_loop().time() >= cut_at:
            for session in sessions:
                if session.phase is Phase.RELAYING:
                    session.close(reason)
        await asyncio.sleep(TICK_SECONDS)


def end_the_rest(sessions: SessionRegistry[Session], reason: CloseReason, *, stuck: bool = False) -> None:
    """Close those that are between packets, and with `stuck` those whose devices do not read."""
    for session in sessions:
        if session.is_between_packets or (stuck and session.is_stuck):
            session.close(reason)
