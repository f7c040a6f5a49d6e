"""File descriptors: how many connections the system's limit allows."""

import logging
import resource
import time
from collections.abc import Callable

from msgspec.structs import replace

from fleet.config.addresses import BrokerKind
from fleet.config.logs import log_event
from fleet.config.settings import Settings
from fleet.domain.errors import Unavailable
from fleet.tls.descriptor_budget import DescriptorBudget

log = logging.getLogger("fleet")

SESSION = 2
"""Of an MQTT session: the device's connection, and its own to the broker."""
RESERVED = 320
"""For registry, log and broker, and for what is accepted in the turn of the event loop in which others give way."""
OTHERS_MAX = 1000
"""Kept free of sessions, for handshakes and HTTP; a quarter where there are few."""
BROKER_RESERVED = 100
"""Of our own broker, which has one for each session of all workers."""
OWN_BROKERS = (BrokerKind.AUTO, BrokerKind.MOSQUITTO, BrokerKind.EMBEDDED)
CONNECTIONS_MIN = 64
LOCAL_CONNECTIONS_MAX = 256
"""To a listener without TLS, in one worker. When it is full, the longest idle one gives way."""
NO_LIMIT = 1_048_576
TELL_SECONDS = 60.0


def raise_limit() -> int:
    """Raise the limit of this process and of those that it starts as far as it may; what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):  # the system has another limit
            pass
    return NO_LIMIT if soft == resource.RLIM_INFINITY else soft


def connections_max(limit: int, settings: Settings) -> int:
    """Descriptors for the connections of one worker's listeners."""
    local = sum(each is not None for each in (settings.forward_auth, settings.broker_auth)) * LOCAL_CONNECTIONS_MAX
    return limit - RESERVED - settings.webhook_at_once_max - local


def fitted(settings: Settings, limit: int, workers: int) -> Settings:
    """`settings` with no more sessions for each of so many workers than `limit` allows, which is logged.

    Raises: Unavailable (`too-few-descriptors`): it allows hardly any.
    """
    connections = connections_max(limit, settings)
    if connections < CONNECTIONS_MIN:
        needed = limit - connections + CONNECTIONS_MIN
        message = f"This process may open {limit} files, which leaves too few for connections."
        raise Unavailable(
            "too-few-descriptors", message, f"Raise the limit (ulimit -n, LimitNOFILE) to {needed} or more."
        )
    allowed = (connections - min(OTHERS_MAX, connections // 4)) // SESSION
    if settings.upstream.kind in OWN_BROKERS:
        allowed = min(allowed, (limit - BROKER_RESERVED) // workers)
    known = {"limit": limit, "workers": workers}
    if settings.sessions_max <= allowed:
        log_event(log, logging.INFO, "descriptors", **known, sessions_max=settings.sessions_max)
        return settings
    lowered = {"configured": settings.sessions_max, "sessions_max": allowed}
    log_event(log, logging.WARNING, "descriptors.too-few", **known, **lowered)
    return replace(settings, sessions_max=allowed)


def descriptor_budget(settings: Settings, limit: int) -> DescriptorBudget:
    """Those of the listeners of one worker; that they are full is logged once a minute."""
    total = connections_max(limit, settings)
    return DescriptorBudget(total, _tell_when_full(limit, total))


def _tell_when_full(limit: int, total: int) -> Callable[[], None]:
    told_at = -TELL_SECONDS

    def tell() -> None:
        nonlocal told_at
        now = time.monotonic()
        if now - told_at >= TELL_SECONDS:
            told_at = now
            log_event(log, logging.WARNING, "descriptors.full", limit=limit, connections=total)

    return tell
