"""A change of state as a value: its writes, its audit row and its events, all or nothing.

The services build a Change; a registry commits it in one transaction, and many of them in one fsync.
"""

from datetime import datetime

from msgspec import Struct, field

from fleet.domain.access import Act
from fleet.domain.writes import Write


class AuditEntry(Struct, frozen=True):
    """Who did what, to what, by what right, and how it ended. Never holds a secret."""

    at: datetime
    actor: str
    """"user alice", "operator bob", "device cam-7", "station st1", "claim b1", "token 3f2a…", "request 91ab…", a job of
    the server, or "nobody" and the like.
    """
    action: str
    """For instance "device.enroll", "device.revoke", "mqtt.connect"."""
    subject: str
    """What it was done to: "device cam-7", "model cam2"."""
    outcome: str
    """"ok", or the code of the refusal."""
    address: str = ""
    detail: dict[str, str] = field(default_factory=dict)


def made_by(act: Act, action: str, subject: str, **detail: str) -> AuditEntry:
    """The entry of a change that was made."""
    return AuditEntry(act.now, act.actor, action, subject, "ok", act.address, detail)


class AuditRow(Struct, frozen=True):
    """An entry of the audit with its number, and the leaf hash computed when it was written."""

    seq: int
    """1 for the first; without gaps, in the order of the commits."""
    entry: AuditEntry
    leaf: bytes


class EventKind:
    """The kinds of events in the feed. Names are stable."""

    DEVICE_STATE = "device.state"
    """subject: device id; detail: the new state."""
    DEVICE_TAGGED = "device.tagged"
    """subject: device id: its tags or groups have changed."""
    CREDENTIAL_ISSUED = "credential.issued"
    """subject: holder; detail: fingerprint in hex."""
    CREDENTIAL_ENDED = "credential.ended"
    """subject: holder; detail: fingerprint in hex of a superseded or revoked credential, "" for all of the holder's."""
    CREDENTIAL_SUPERSEDED = "credential.superseded"
    """subject: holder; detail: fingerprint in hex. The next event ends it, since the holder has used a newer one:
    sessions of its other client ids may go on for a while."""
    MODEL_CHANGED = "model.changed"
    """subject: model name."""
    REQUEST_PENDING = "request.pending"
    """subject: request id; detail: the device id it asks for. It needs a decision."""
    REQUEST_DECIDED = "request.decided"
    """subject: request id; detail: "approved" or "denied"."""
    DEVICES_IMPORTED = "devices.imported"
    """subject: id of the import; detail: how many devices were registered."""
    CLAIM_STATE = "claim.state"
    """subject: claim's name; detail: "created", "quarantined", "released" or "revoked"."""
    ANCHOR_CHANGED = "anchor.changed"
    """subject: name of a manufacturer's CA; detail: "added" or "removed"."""

    SESSIONS_CHANGED = "sessions.changed"
    """subject: the run that holds them; detail: sessions that began and ended, as JSON (`fleet.domain.presence`). Only
    with `presence_events`."""
    SESSION_KICKED = "session.kicked"
    """subject: device id; detail: which sessions, and whether their wills are published, as JSON
    (`fleet.domain.registry_events.SessionKicked`)."""
    DISTRUST_CHANGED = "distrust.changed"
    """subject: id of the rule; detail: the rule as JSON (`fleet.domain.distrust`), "" when it was undone."""


class Event(Struct, frozen=True):
    """One entry of the change feed."""

    kind: str
    subject: str
    detail: str = ""
    seq: int = 0
    """Assigned by the registry; 0 until then."""


class Change(Struct, frozen=True):
    """All of it is committed, or none. A Change with no writes records a refusal."""

    audit: AuditEntry
    writes: tuple[Write, ...] = ()
    events: tuple[Event, ...] = ()


class Notice(Struct, frozen=True):
    """Events that tell of no change of the registry's state, and so have no audit row."""

    events: tuple[Event, ...]
    writes: tuple[()] = ()
    audit: None = None


Committed = Change | Notice
"""What goes through the group commit."""
