"""Decisions of the agent, as one pure function of its state. No I/O, no clock, no randomness.

The runner gathers a View, calls `decide`, carries out the Decision, and repeats after every event or at the end of a
Wait. There are up to two identities: the *current* one, and a *candidate*, a complete certificate in the other slot
that has not been proven yet. A candidate is proven, and becomes current, by a connection: a CONNACK with success.
"""

import enum
from dataclasses import dataclass
from datetime import datetime

from fleet.est_client.validity import Lifetime, has_expired

TICK_SECONDS = 60.0  # between two readings of the wall clock, so that a jump of it is noticed


class Role(enum.StrEnum):
    CURRENT = "current"
    CANDIDATE = "candidate"


class Link(enum.StrEnum):
    DOWN = "down"
    CONNECTING = "connecting"
    UP = "up"


class Setback(enum.StrEnum):
    """Why a connection ended or failed, as far as it matters for the next decision."""

    NETWORK = "network"
    """No answer, or the connection broke: retry soon."""
    CLOSED = "closed"
    """The server has ended it by DISCONNECT: retry soon. Whether it refuses this identity, the next attempt shows."""
    UNTRUSTED = "untrusted"
    """The server's certificate did not verify: retry, and report it."""
    REFUSED = "refused"
    """The server refused this identity. Keep it and retry slowly: a suspension can be lifted."""
    ENDED = "ended"
    """The server refused it permanently: revoked, retired or unknown. Keep it and retry ever more slowly."""
    UNUSABLE = "unusable"
    """The key is of another TPM or token: nothing has been asked of the server."""
    PROTOCOL = "protocol"
    """The server does not support this version of MQTT: try the other at once."""

    @property
    def is_refusal(self) -> bool:
        return self in (Setback.REFUSED, Setback.ENDED)


class Phase(enum.StrEnum):
    SERVING = "serving"
    QUIESCING = "quiescing"
    """Before a proof: nothing is published until all messages in flight are acknowledged."""
    PROVING = "proving"
    """The candidate connects while the current connection is still up."""


@dataclass(frozen=True, slots=True)
class View:
    """The state that decisions depend on. Times are monotonic seconds; `_at`: the earliest time of an attempt."""

    current: Lifetime | None
    candidate: Lifetime | None
    link: Link
    link_uses: Role | None
    """The identity of the connection that is up or connecting."""
    phase: Phase
    in_flight: int
    """Messages sent and not yet acknowledged."""
    renewing: bool
    """A child process is requesting a new certificate."""
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
    renewal_ended: bool = False
    """The server has said that the current certificate can never be renewed."""
    has_bootstrap: bool = False
    """There is a credential for another first enrollment."""


@dataclass(frozen=True, slots=True)
class Connect:
    role: Role


@dataclass(frozen=True, slots=True)
class HangUp:
    """Give up a connection attempt that took too long."""


@dataclass(frozen=True, slots=True)
class Renew:
    """Start the child process that generates a key and requests a certificate."""


@dataclass(frozen=True, slots=True)
class Recover:
    """Start the child process that enrolls again with the bootstrap credential."""


@dataclass(frozen=True, slots=True)
class Quiesce:
    """Stop publishing from the outbox."""


@dataclass(frozen=True, slots=True)
class Prove:
    """Connect with the candidate while the current connection is up."""


@dataclass(frozen=True, slots=True)
class AbandonProof:
    """Continue with the current identity; retry the candidate later."""


@dataclass(frozen=True, slots=True)
class Promote:
    """The candidate is proven: make it current, and erase its predecessor."""


@dataclass(frozen=True, slots=True)
class Wait:
    seconds: float


Decision = Connect | HangUp | Renew | Recover | Quiesce | Prove | AbandonProof | Promote | Wait


def shown(decision: Decision) -> str:
    """For the log: "connect role=current"."""
    fields = (f"{name}={getattr(decision, name)}" for name in decision.__dataclass_fields__)
    return " ".join([type(decision).__name__.lower(), *fields])


def decide(view: View, now: datetime, monotonic: float) -> Decision:
    """The next action."""
    match view.phase:
        case Phase.QUIESCING:
            return _while_quiescing(view, monotonic)
        case Phase.PROVING:
            if monotonic >= view.connecting_until:
                return AbandonProof()
            return Wait(min(TICK_SECONDS, view.connecting_until - monotonic))
    if view.link is Link.CONNECTING and monotonic >= view.connecting_until:
        return HangUp()
    if view.link is Link.DOWN and monotonic >= view.connect_at and (role := _identity_to_try(view, now)):
        return Connect(role)
    if view.link is Link.UP and view.link_uses is Role.CANDIDATE and monotonic >= view.promote_at:
        return Promote()
    if _may_prove(view, now) and monotonic >= view.prove_at:
        return Quiesce()
    if _may_recover(view, now) and (view.renewal_forced or monotonic >= view.renew_at):
        return Recover()
    if _may_renew(view, now) and (view.renewal_forced or (view.renewal_due and monotonic >= view.renew_at)):
        return Renew()
    return Wait(_seconds_to_next(view, now, monotonic))


def _while_quiescing(view: View, monotonic: float) -> Decision:
    if view.link is not Link.UP:
        return AbandonProof()  # the next connection tries the candidate first anyway
    if view.in_flight == 0:
        return Prove()
    if monotonic >= view.quiescing_until:
        # Connecting now would take over the session while acknowledgements are pending: those messages would be
        # published twice.
        return AbandonProof()
    return Wait(view.quiescing_until - monotonic)


def _identity_to_try(view: View, now: datetime) -> Role | None:
    """While down, the two identities are tried in turn, the candidate first.

    The server revokes the old certificate once the new one is used, and the agent may have been killed before it noted
    that: after a failure only an attempt shows which of the two the server accepts.
    """
    candidate = view.candidate is not None and not has_expired(view.candidate, now)
    if candidate and (view.current is None or view.last_tried is not Role.CANDIDATE):
        return Role.CANDIDATE
    if view.current is not None:
        return Role.CURRENT  # even if expired: our clock may be wrong, so the server decides
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
    """A renewal overwrites the candidate: only if that is missing or useless."""
    if view.renewing or view.current is None or view.link_uses is Role.CANDIDATE:
        return False
    return view.candidate is None or view.candidate_refused or has_expired(view.candidate, now)


def _may_recover(view: View, now: datetime) -> bool:
    """The last rung: nothing to renew, or nothing that ever will be. What it gets is a candidate like any other."""
    if view.renewing or not view.has_bootstrap or view.link_uses is Role.CANDIDATE:
        return False
    if view.current is not None and not view.renewal_ended:
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
    if _may_recover(view, now) or (view.renewal_due and _may_renew(view, now)):
        times.append(view.renew_at)
    # A time that has passed without a decision depends on another event.
    return min(time for time in times if time > monotonic) - monotonic
