"""What to do next, as one pure function of what is known. No I/O, no clock, no chance.

The runner gathers a View, asks `decide`, does what the Decision says, and asks again after every event or when the
Wait is over. Two identities are in play: the *current* one, and at times a *candidate*: a complete certificate in the
other slot that has not been seen to work yet. A candidate becomes current by being used: a CONNACK proves it.
"""

import enum
from dataclasses import dataclass
from datetime import datetime

from fleet.est_client.validity import Lifetime, clock_is_credible, has_expired

TICK_SECONDS = 60.0  # the wall clock is looked at this often, so a jump of it is noticed


class Role(enum.StrEnum):
    CURRENT = "current"
    CANDIDATE = "candidate"


class Link(enum.StrEnum):
    DOWN = "down"
    CONNECTING = "connecting"
    UP = "up"


class Setback(enum.StrEnum):
    """Why a connection ended or did not come about, as far as it changes what we do next."""

    NETWORK = "network"
    """Nobody answered, or the answer broke off: try again soon."""
    UNTRUSTED = "untrusted"
    """The server did not prove who it is: try again, and say so."""
    REFUSED = "refused"
    """The server knows who asks and says no. Keep the identity, ask again slowly: a suspension can be lifted."""
    PROTOCOL = "protocol"
    """It does not speak this version of MQTT: try the other at once."""


class Phase(enum.StrEnum):
    SERVING = "serving"
    QUIESCING = "quiescing"
    """A candidate is about to be proven: nothing new is published, what is in flight is waited for."""
    PROVING = "proving"
    """The candidate connects beside the connection that works."""


@dataclass(frozen=True, slots=True)
class View:
    """Everything that a decision rests on. Times named `_at` are monotonic seconds; before them nothing is tried."""

    current: Lifetime | None
    candidate: Lifetime | None
    link: Link
    link_uses: Role | None
    """The identity of the connection that is up or being made."""
    phase: Phase
    in_flight: int
    """Messages sent and not yet acknowledged."""
    renewing: bool
    """A child process is fetching a new certificate."""
    renewal_due: bool
    renewal_forced: bool
    candidate_refused: bool
    """The server refused the candidate while the current identity was connected."""
    last_tried: Role | None
    """The identity of the last connection attempt that failed, while down."""
    connect_at: float
    connecting_until: float
    renew_at: float
    prove_at: float
    quiescing_until: float
    promote_at: float


@dataclass(frozen=True, slots=True)
class Connect:
    which: Role
    check_time: bool
    """False when our clock cannot be right: then the dates of the server's certificate say nothing."""


@dataclass(frozen=True, slots=True)
class HangUp:
    """The connection attempt took too long."""


@dataclass(frozen=True, slots=True)
class Renew:
    """Start the child process that makes a key and asks for a certificate."""


@dataclass(frozen=True, slots=True)
class Quiesce:
    """Stop taking messages from the outbox."""


@dataclass(frozen=True, slots=True)
class Prove:
    """Connect with the candidate beside the working connection."""

    check_time: bool


@dataclass(frozen=True, slots=True)
class AbandonProof:
    """Go on with the current identity; the candidate gets another chance later."""


@dataclass(frozen=True, slots=True)
class Promote:
    """The candidate has worked: make it current, and drop its predecessor."""


@dataclass(frozen=True, slots=True)
class Wait:
    seconds: float


Decision = Connect | HangUp | Renew | Quiesce | Prove | AbandonProof | Promote | Wait


def decide(view: View, now: datetime, monotonic: float) -> Decision:
    """The one thing to do next."""
    check_time = clock_is_credible(now, view.current or view.candidate)
    match view.phase:
        case Phase.QUIESCING:
            return _while_quiescing(view, monotonic, check_time)
        case Phase.PROVING:
            if monotonic >= view.connecting_until:
                return AbandonProof()
            return Wait(min(TICK_SECONDS, view.connecting_until - monotonic))
    if view.link is Link.CONNECTING and monotonic >= view.connecting_until:
        return HangUp()
    if view.link is Link.DOWN and monotonic >= view.connect_at and (which := _identity_to_try(view, now)):
        return Connect(which, check_time)
    if view.link is Link.UP and view.link_uses is Role.CANDIDATE and monotonic >= view.promote_at:
        return Promote()
    if _may_prove(view, now) and monotonic >= view.prove_at:
        return Quiesce()
    if _may_renew(view, now) and (view.renewal_forced or (view.renewal_due and monotonic >= view.renew_at)):
        return Renew()
    return Wait(_seconds_to_next(view, now, monotonic))


def _while_quiescing(view: View, monotonic: float, check_time: bool) -> Decision:
    if view.link is not Link.UP:
        return AbandonProof()  # the next connection tries the candidate first anyway
    if view.in_flight == 0:
        return Prove(check_time)
    if monotonic >= view.quiescing_until:
        # Connecting now would take the session over with acknowledgements on their way: those messages would be
        # published a second time.
        return AbandonProof()
    return Wait(view.quiescing_until - monotonic)


def _identity_to_try(view: View, now: datetime) -> Role | None:
    """While down, the two identities take turns, the candidate first.

    The server drops the old certificate once it has seen the new one in use, and we may have died before we heard so:
    after any failure only trying tells which of the two it still accepts.
    """
    candidate = view.candidate is not None and not has_expired(view.candidate, now)
    if candidate and (view.current is None or view.last_tried is not Role.CANDIDATE):
        return Role.CANDIDATE
    if view.current is not None:
        return Role.CURRENT  # expired or not: our clock may be wrong, and the server is the judge
    return None


def _may_prove(view: View, now: datetime) -> bool:
    return (
        view.candidate is not None
        and not view.candidate_refused
        and not has_expired(view.candidate, now)
        and view.link is Link.UP
        and view.link_uses is Role.CURRENT
        and not view.renewing
    )


def _may_renew(view: View, now: datetime) -> bool:
    """A renewal overwrites the candidate: only when there is none to lose."""
    if view.renewing or view.current is None or view.link_uses is Role.CANDIDATE:
        return False
    return view.candidate is None or view.candidate_refused or has_expired(view.candidate, now)


def _seconds_to_next(view: View, now: datetime, monotonic: float) -> float:
    times = [monotonic + TICK_SECONDS]
    if view.link is Link.DOWN:
        times.append(view.connect_at)
    if view.link is Link.CONNECTING:
        times.append(view.connecting_until)
    if view.link is Link.UP and view.link_uses is Role.CANDIDATE:
        times.append(view.promote_at)
    if _may_prove(view, now):
        times.append(view.prove_at)
    if view.renewal_due and _may_renew(view, now):
        times.append(view.renew_at)
    # A time that has passed without a decision has nothing to wait for: another event must come first.
    return min(time for time in times if time > monotonic) - monotonic
