"""Phases of a session, what happens in each, their deadlines, and the timers that it has."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from fleet.domain.device import Model
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import CloseReason
from fleet.servers.gateway.limits.limits import Limits

S = TypeVar("S")


class Phase(enum.Enum):
    AWAITING_CONNECT = enum.auto()
    ADMITTING = enum.auto()
    CONNECTING = enum.auto()
    AWAITING_CONNACK = enum.auto()
    RELAYING = enum.auto()
    CLOSED = enum.auto()


class Timer(enum.Enum):
    DEADLINE = enum.auto()  # of the phase
    RETURN = enum.auto()  # of a CONNECT that waits
    EXPIRY = enum.auto()  # of the certificate
    SUPERSEDED = enum.auto()  # of one that a newer certificate has followed
    STUCK = enum.auto()  # of a device that does not read
    KEEP_ALIVE = enum.auto()  # of a device that sends nothing


@dataclass(frozen=True, slots=True)
class Deadline:
    seconds: Callable[[Limits], float]
    reason: CloseReason


CONNECT_DEADLINE = Deadline(lambda limits: limits.connect_seconds_max, close_reasons.CONNECT_TIMEOUT)
OPEN_DEADLINE = Deadline(lambda limits: limits.open_seconds_max, close_reasons.OPEN_TIMEOUT)


def _ignore(session: object, event: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Rules(Generic[S]):
    """One phase: the one that follows (CLOSED always may), its deadline, and each event's action or close reason.

    `S` is the session.
    """

    next: Phase | None
    deadline: Deadline | None
    device_data: Callable[[S, bytes], CloseReason | None] = _ignore
    broker_data: Callable[[S, bytes], CloseReason | None] = _ignore
    broker_lost: CloseReason | None = None
    model_set: Callable[[S, Model], CloseReason | None] = _ignore
