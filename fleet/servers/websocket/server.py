"""The listener's protocols: MQTT over WebSocket in front of those of another factory."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection

from fleet.config.logs import log_event
from fleet.domain.peer import Peer
from fleet.servers.line_limit import LineLimit
from fleet.servers.websocket.handshake import OpeningHandshake
from fleet.servers.websocket.transport import WebSocketTransport

log = logging.getLogger("fleet.wss")


def over_websocket(
    protocol: Callable[[Peer], asyncio.Protocol], origins: Collection[str], counters: Counter[str]
) -> Callable[[Peer], asyncio.Protocol]:
    """A factory whose connections carry the stream of `protocol`'s; web pages of `origins` may connect. What is refused
    is counted in `counters`.
    """
    lines = LineLimit(log)
    listed = frozenset(origins)

    def connected(peer: Peer) -> asyncio.Protocol:
        def refused(code: str, detail: str) -> None:
            counters[f"wss.refused.{code}"] += 1
            if lines.allows(time.monotonic(), code, peer.source, authenticated=peer.fingerprint is not None):
                given = {"reason": detail} if detail else {}
                log_event(log, logging.INFO, "wss.refused", address=peer.address, code=code, **given)

        return WebSocketTransport(protocol(peer), OpeningHandshake(listed), refused)

    return connected
