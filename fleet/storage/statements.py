"""SQL statements of writes, once for both engines; those of presence and CRLs stand beside their reads."""

from collections.abc import Iterable
from enum import StrEnum

from fleet.domain.device import DeviceState
from fleet.storage import mapping as tables
from fleet.storage.statement import Statement
from fleet.storage.waiting_requests import CROWD, make_room

_READ_AGAIN = "Read it again and retry."
_CHANGED = "has been changed since it was read."
_OTHER_NAME = "Choose another name."


def _any_of(first: int, count: int) -> str:
    return ", ".join(f"${number}::text" for number in range(first, first + count))


def filled(states: Iterable[StrEnum], count: int) -> tuple[str, ...]:
    """`states` as the `count` parameters of an IN list: a statement's text is the same however many there are."""
    given = sorted(state.value for state in states)
    return (*given, *(given[-1:] or [""]) * (count - len(given)))


DEVICE_STATES = len(DeviceState)
"""Parameters of the IN list of DEVICE_MAY_MOVE and of the moves."""
DECIDABLE_STATES = 2
"""Those of REQUEST_MAY_MOVE."""

ADD_MODEL = Statement(
    tables.MODEL.insert(), "model-exists", "Model {0} exists already.", "Change it with: fleet model set."
)
HAS_MODEL = Statement(
    "SELECT 1 FROM model WHERE name = $1::text",
    "no-such-model",
    "There is no model {0}.",
    "Add it with: fleet model add.",
)
SET_MODEL = Statement(
    """
    UPDATE model SET lifetime = $2::bigint, key_types = $3::text, publish = $4::text, subscribe = $5::text,
        retain = $6::bigint, rules = $7::text, revision = revision + 1
    WHERE name = $1::text AND revision = $8::bigint""",
    "changed-meanwhile",
    f"Model {{0}} {_CHANGED}",
    _READ_AGAIN,
)

ADD_DEVICE = Statement(tables.DEVICE.insert(), "device-exists", "Device {0} exists already.")
SERIAL_IS_FREE = Statement(
    """
    SELECT 1 WHERE NOT EXISTS (
        SELECT 1 FROM device WHERE serial_key = $4::text AND model = $2::text AND id <> $3::text
        AND $1::text <> '' AND serial_key <> '' AND state NOT IN ('revoked', 'retired'))""",
    "serial-taken",
    "The hardware serial {0} is that of another device of the model {1}.",
    "Revoke or retire that one first.",
)
HAS_DEVICE = Statement(
    "SELECT 1 FROM device WHERE id = $1::text",
    "no-such-device",
    "There is no device {0}.",
    "See: fleet device list",
)
_DEVICE_MOVED = ("device-moved", "Device {0} is not in a state from which this change is allowed.")
DEVICE_MAY_MOVE = Statement(
    f"SELECT 1 FROM device WHERE id = $1::text AND state IN ({_any_of(2, DEVICE_STATES)})", *_DEVICE_MOVED
)
_MOVED = "state = $2::text, expires_at = coalesce($3::bigint, expires_at), revision = revision + 1"
_MOVE_DEVICE = f"UPDATE device SET {_MOVED} WHERE id = $1::text"
_READ_BUDGET, _SPENT_BUDGET = (f"${4 + DEVICE_STATES + n}::bigint" for n in range(2))
MOVE_DEVICE_AND_SPEND = Statement(
    f"""
    UPDATE device SET {_MOVED}, budget_full_at = {_SPENT_BUDGET}
    WHERE id = $1::text AND state IN ({_any_of(4, DEVICE_STATES)}) AND coalesce(budget_full_at, 0) = {_READ_BUDGET}""",
    *_DEVICE_MOVED,
)
MOVE_DEVICE = Statement(f"{_MOVE_DEVICE} AND state IN ({_any_of(4, DEVICE_STATES)})", *_DEVICE_MOVED)
MOVE_DEVICE_REVISION = Statement(
    f"{_MOVE_DEVICE} AND revision = $4::bigint", "changed-meanwhile", f"Device {{0}} {_CHANGED}", _READ_AGAIN
)
NOTE_STATE_CHANGE = Statement(
    tables.STATE_CHANGE.insert("""
    ON CONFLICT (device_id) DO UPDATE
        SET state = excluded.state, at = excluded.at, actor = excluded.actor, reason = excluded.reason""")
)
TAG_DEVICE = Statement(
    """
    UPDATE device SET tags = $2::text, groups = $3::text, revision = revision + 1
    WHERE id = $1::text AND revision = $4::bigint""",
    "changed-meanwhile",
    f"Device {{0}} {_CHANGED}",
    _READ_AGAIN,
)
ADD_TAG = Statement(tables.TAG.insert())

KEY_IS_FREE = Statement(
    """
    SELECT 1 WHERE NOT EXISTS (
        SELECT 1 FROM credential WHERE key_sha256 = $1::bytea
        AND (holder <> $2::text OR kind <> $3::text OR state = 'revoked'))
    AND NOT EXISTS (SELECT 1 FROM revoked_key WHERE key_sha256 = $1::bytea)""",
    "key-taken",
    "The key is another holder's, or was revoked.",
    "Make a new key.",
)
ADD_CREDENTIAL = Statement(
    tables.CREDENTIAL.insert(),
    "credential-exists",
    "A certificate with this serial number or fingerprint is recorded already.",
)
CREDENTIAL_IS_USABLE = Statement(  # locked, so that it is not revoked before COMMIT
    "SELECT 1 FROM credential WHERE fingerprint = $1::bytea AND state IN ('issued', 'active') FOR UPDATE",
    "credential-ended",
    "The certificate is not usable any more.",
    "Enroll again.",
)
IS_NOT_USED = Statement(
    "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM credential WHERE fingerprint = $1::bytea AND state = 'active')",
    "used-already",
    "The certificate is in use already.",
)
# One that is active by now is left as it is, and so are its indices.
USE_CREDENTIAL = Statement("UPDATE credential SET state = 'active' WHERE fingerprint = $1::bytea AND state = 'issued'")
SUPERSEDE_OLDER = Statement("""
    UPDATE credential SET state = 'superseded'
    FROM (SELECT seq, holder, kind FROM credential WHERE fingerprint = $1::bytea) AS used
    WHERE credential.holder = used.holder AND credential.kind = used.kind
        AND credential.state IN ('issued', 'active') AND credential.seq < used.seq""")
_UNUSED = "WHERE holder = $1::text AND kind = $2::text AND state = 'issued' AND earned_by = $3::text"
_ANSWERED = ("answered-already", "{0} has been given another certificate meanwhile.")
NONE_IS_UNUSED = Statement(f"SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM credential {_UNUSED})", *_ANSWERED)
NEWEST_UNUSED_IS = Statement(
    f"SELECT 1 WHERE $4::bytea = (SELECT fingerprint FROM credential {_UNUSED} ORDER BY seq DESC LIMIT 1)", *_ANSWERED
)
END_UNUSED = Statement(f"UPDATE credential SET state = 'superseded' {_UNUSED}")
END_CREDENTIAL = Statement(
    "UPDATE credential SET state = 'superseded' WHERE fingerprint = $1::bytea AND state IN ('issued', 'active')"
)
NEWEST_FOR_KEY_IS = Statement(
    """
    SELECT 1 WHERE $4::bytea = (
        SELECT fingerprint FROM credential WHERE holder = $1::text AND kind = $2::text AND key_sha256 = $3::bytea
        ORDER BY seq DESC LIMIT 1)""",
    "changed-meanwhile",
    "{0} has been given another certificate for the same key meanwhile.",
    _READ_AGAIN,
)
REVOKE_CREDENTIAL = Statement("UPDATE credential SET state = 'revoked' WHERE fingerprint = $1::bytea")
REVOKE_CREDENTIALS = Statement("""
    UPDATE credential SET state = 'revoked'
    WHERE holder = $1::text AND kind = $2::text AND state IN ('issued', 'active', 'superseded')""")
CREDENTIAL_HAS_ENDED = Statement(  # locked, so that it is not revoked between this check and its deletion
    "SELECT 1 FROM credential WHERE fingerprint = $1::bytea AND not_after <= $2::bigint FOR UPDATE",
    "credential-kept",
    "A certificate that has not expired is not deleted.",
)
KEEP_REVOKED_KEY = Statement("""
    INSERT INTO revoked_key (key_sha256, kind, holder)
    SELECT key_sha256, kind, holder FROM credential WHERE fingerprint = $1::bytea AND state = 'revoked'
    ON CONFLICT DO NOTHING""")
DROP_CREDENTIAL = Statement("DELETE FROM credential WHERE fingerprint = $1::bytea")

# By these a change of a holder's rights enters the rows that CRLs are made of.
_UNTIL_THEN = "not_after > coalesce($1::bigint, 0)"
_LIST = """
    INSERT INTO revoked (serial, not_after, revoked_at, reason)
    SELECT serial, not_after, coalesce($1::bigint, not_before), $2::bigint FROM credential WHERE """
# What CRLs list stays in them, with its former entry, until there is one of the new reason. Of a removal the entry is
# that of the hold as long as it is stale, and then no such entry.
_IS_REMOVED = "revoked.reason = 8 AND revoked.stale = 0"
RESTATED = f"""
        stale = 1, entry = CASE WHEN {_IS_REMOVED} THEN NULL ELSE revoked.entry END,
        number = CASE WHEN {_IS_REMOVED} THEN NULL ELSE revoked.number END"""
# What was on hold stays revoked from then on; what is revoked permanently keeps its reason, or gets keyCompromise.
_LISTED = f"""
    ON CONFLICT (serial) DO UPDATE SET reason = excluded.reason,{RESTATED},
        revoked_at = CASE WHEN revoked.reason = 8 THEN excluded.revoked_at ELSE revoked.revoked_at END
    WHERE (revoked.reason IN (6, 8) OR excluded.reason = 1) AND revoked.reason <> excluded.reason"""
LIST_HOLDERS = Statement(f"{_LIST} holder = $3::text AND kind = $4::text AND {_UNTIL_THEN}{_LISTED}")
LIST_ONE = Statement(f"{_LIST} fingerprint = $3::bytea AND state IN ('issued', 'active') AND {_UNTIL_THEN}{_LISTED}")
LIST_ANY = Statement(f"{_LIST} fingerprint = $3::bytea AND {_UNTIL_THEN}{_LISTED}")
RELEASE_HOLDERS = Statement("""
    UPDATE revoked SET reason = 8, stale = 1
    WHERE reason = 6 AND serial IN (SELECT serial FROM credential WHERE kind = $1::text AND holder = $2::text)""")

ADD_TOKEN = Statement(tables.TOKEN.insert(), "token-exists", "Token {0} exists already.")
SPEND_TOKEN = Statement(
    "UPDATE token SET uses = uses + 1 WHERE id = $1::text AND revoked_at IS NULL AND uses < uses_max",
    "token-spent",
    "The token is revoked or has no use left.",
    "Ask for a new one.",
)
REVOKE_TOKEN = Statement(
    "UPDATE token SET revoked_at = $2::bigint WHERE id = $1::text AND revoked_at IS NULL",
    "token-gone",
    "Token {0} does not exist or is revoked already.",
)
ADD_OPERATOR = Statement(tables.OPERATOR.insert(), "operator-exists", "Operator {0} exists already.", _OTHER_NAME)
ADD_ANSWER = Statement(
    tables.ANSWER.insert(),
    "idempotency-key-used",
    "Another request with this idempotency key was answered meanwhile.",
    "Send the same request again to get that answer.",
)
DROP_ANSWERS = Statement("DELETE FROM answer WHERE at < $1::bigint")

ADD_STATION = Statement(tables.STATION.insert(), "station-exists", "Station {0} exists already.", _OTHER_NAME)
SET_STATION = Statement(
    "UPDATE station SET quota = $2::bigint WHERE name = $1::text",
    "no-such-station",
    "There is no station {0}.",
    "See: fleet station list",
)
# A node whose clock is still in the day before counts in the later one: two that disagree at midnight do not evade the
# quota.
SPEND_STATION = Statement(
    """
    UPDATE station SET used = CASE WHEN day IN ($2::bigint, $2::bigint + 1) THEN used + 1 ELSE 1 END,
        day = CASE WHEN day = $2::bigint + 1 THEN day ELSE $2::bigint END
    WHERE name = $1::text AND (quota = 0 OR day NOT IN ($2::bigint, $2::bigint + 1) OR used < quota)""",
    "station-spent",
    "Station {0} has had its certificates of the day.",
)

MAKE_ROOM_IN_MODEL = Statement(make_room(" AND model = $7::text"))
MAKE_ROOM = Statement(make_room(""))
_PENDING = f"(SELECT count(*) FROM {CROWD}"
ADD_REQUEST = Statement(  # requests are added one batch at a time: the counts are exact
    f"""
    INSERT INTO approval_request ({tables.REQUEST.listed()}) SELECT {tables.REQUEST.marks()}
    WHERE {_PENDING}) < $20::bigint AND {_PENDING} AND model = $3::text) < $21::bigint
        AND {_PENDING} AND network = $8::text) < $22::bigint
    ON CONFLICT DO NOTHING""",
    "request-not-added",
    "Request {0} is there already, or there is no room for it.",
)
SEE_REQUEST = Statement("""
    UPDATE approval_request SET asked = asked + $2::bigint, last_seen = $3::bigint, address = $4::text,
        expires_at = CASE WHEN state = 'pending' AND expires_at < $5::bigint THEN $5::bigint ELSE expires_at END
    WHERE id = $1::text""")
NO_OTHER_IS_APPROVED = Statement(
    """
    SELECT 1 WHERE NOT EXISTS (
        SELECT 1 FROM approval_request a JOIN approval_request b ON a.device_id = b.device_id
        WHERE a.id = $1::text AND b.id <> a.id AND b.state = 'approved' AND b.expires_at > $2::bigint)""",
    "other-request-approved",
    "Another request for the device id of {0} has been approved already.",
    "Deny that one first.",
)
REQUEST_MAY_MOVE = Statement(
    f"""
    SELECT 1 FROM approval_request
    WHERE id = $1::text AND expires_at > $2::bigint AND state IN ({_any_of(3, DECIDABLE_STATES)})""",
    "request-moved",
    "Request {0} is not in a state from which this decision is allowed.",
)
_DECIDE = """
    UPDATE approval_request SET state = $2::text, decided_by = $3::text, decided_at = $4::bigint, reason = $5::text,
        expires_at = $6::bigint, revision = revision + 1
    WHERE id = $1::text"""
DECIDE_REQUEST = Statement(_DECIDE)
DECIDE_REQUEST_REVISION = Statement(
    f"{_DECIDE} AND revision = $7::bigint", "changed-meanwhile", f"Request {{0}} {_CHANGED}", _READ_AGAIN
)
DENY_OTHER_REQUESTS = Statement("""
    UPDATE approval_request SET state = 'denied', decided_by = $2::text, decided_at = $3::bigint, reason = $4::text,
        expires_at = $5::bigint, revision = revision + 1
    WHERE state = 'pending' AND id <> $1::text
        AND device_id = (SELECT device_id FROM approval_request WHERE id = $1::text)""")
COLLECT_REQUEST = Statement(
    "UPDATE approval_request SET state = 'issued', revision = revision + 1 WHERE id = $1::text AND state = 'approved'",
    "request-moved",
    "Request {0} is not approved any more.",
)
DROP_REQUESTS = Statement("DELETE FROM approval_request WHERE expires_at <= $1::bigint")

ADD_CLAIM = Statement(tables.CLAIM.insert(), "claim-exists", "Claim {0} exists already.", _OTHER_NAME)
SPEND_CLAIM = Statement(
    """
    UPDATE claim SET uses = uses + 1
    WHERE name = $1::text AND revoked_at IS NULL AND quarantined_at IS NULL AND uses < quota""",
    "claim-spent",
    "The claim is revoked or in quarantine, or has no use left.",
)
COUNT_TAKEOVER = Statement(
    """
    UPDATE claim SET takeovers = $2::bigint
    WHERE name = $1::text AND takeovers = $2::bigint - 1 AND quarantined_at IS NULL AND revoked_at IS NULL""",
    "changed-meanwhile",
    f"Claim {{0}} {_CHANGED}",
    _READ_AGAIN,
)
QUARANTINE_CLAIM = Statement(
    """
    UPDATE claim SET quarantined_at = $2::bigint, quarantine_reason = $3::text
    WHERE name = $1::text AND quarantined_at IS NULL AND revoked_at IS NULL""",
    "claim-not-open",
    "Claim {0} is in quarantine already, or revoked.",
)
RELEASE_CLAIM = Statement(
    """
    UPDATE claim SET quarantined_at = NULL, quarantine_reason = '', takeovers = 0
    WHERE name = $1::text AND quarantined_at IS NOT NULL AND revoked_at IS NULL""",
    "claim-not-quarantined",
    "Claim {0} is not in quarantine, or is revoked.",
)
REVOKE_CLAIM = Statement(
    "UPDATE claim SET revoked_at = $2::bigint WHERE name = $1::text AND revoked_at IS NULL",
    "claim-gone",
    "Claim {0} does not exist or is revoked already.",
)

_SEE_ANCHORS = "See: fleet anchor list"
ADD_ANCHOR = Statement(
    tables.ANCHOR.insert(),
    "anchor-exists",
    "There is an anchor {0} already, or one with this certificate.",
    _SEE_ANCHORS,
)
DROP_ANCHOR = Statement(
    "DELETE FROM anchor WHERE name = $1::text", "no-such-anchor", "There is no anchor {0}.", _SEE_ANCHORS
)
_IDEVID_TAKEN = (
    "idevid-taken",
    "The manufacturer's certificate is bound to another device, or its CA is not trusted any more.",
)
HAS_ANCHOR = Statement(  # locked, so that it is not removed before COMMIT
    "SELECT 1 FROM anchor WHERE name = $1::text FOR SHARE", *_IDEVID_TAKEN
)
BIND_IDEVID = Statement(tables.IDEVID.insert())
IS_BOUND = Statement("SELECT 1 FROM idevid WHERE key_sha256 = $1::bytea AND device_id = $2::text", *_IDEVID_TAKEN)

ADD_DISTRUST = Statement(tables.DISTRUST.insert(), "distrust-exists", "There is a distrust {0} already.")
DROP_DISTRUST = Statement(
    "DELETE FROM distrust WHERE id = $1::text",
    "no-such-distrust",
    "There is no distrust {0}.",
    "See: fleet distrust list",
)

LISTED_ALREADY = ("listed-already", "A device, a serial or a key of the manifest has been registered meanwhile.")
NO_SUCH_MODEL = ("no-such-model", "There is no model of this name.", "Add it with: fleet model add.")
"""Conflicts of a ImportDevices, which each engine writes in bulk."""

# One that ends later than two of its length from now was taken by a clock that is fast; clocks differ by less than one.
TAKE_LEASE = Statement(
    f"""
    {tables.LEASE.insert("")}
    ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at
    WHERE lease.owner = excluded.owner OR lease.expires_at <= $4::bigint OR $5::bigint = 1
        OR $3::bigint > $4::bigint AND lease.expires_at - $3::bigint > $3::bigint - $4::bigint""",
    "lease-held",
    "Another owner than {1} holds the lease {0}.",
)
DROP_AUDIT = Statement(
    """
    DELETE FROM audit WHERE seq <= $1::bigint AND $1::bigint < (SELECT max(seq) FROM audit)
        AND $1::bigint <= (SELECT max(size) FROM audit_head) AND $1::bigint % $2::bigint = 0""",
    "audit-kept",
    "The audit up to row {0} is not sealed, or is not there any more.",
)
DROP_EVENTS = Statement("DELETE FROM event WHERE seq <= $1::bigint AND seq < (SELECT max(seq) FROM event)")
ADD_HEAD = Statement(tables.HEAD.insert(""))
SET_FRONTIER = Statement("""
    INSERT INTO audit_frontier (one, size, hashes) VALUES (1, $1::bigint, $2::bytea)
    ON CONFLICT (one) DO UPDATE SET size = excluded.size, hashes = excluded.hashes""")

STATEMENTS = {name: each for name, each in list(globals().items()) if isinstance(each, Statement)}
"""Every statement by its name."""
