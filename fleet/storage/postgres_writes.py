"""Each Write as steps, each step one SQL statement; and the functions that take a whole batch of them in one trip.

A step that must find a row and finds none is its Write's Conflict: there is no gap between looking and writing. The
statements live in functions of the session's own (`pg_temp`), so that a batch costs one trip over the network however
many Changes are in it, and their plans are kept. Two programs of different versions may share a database: each brings
its own.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, assert_never

from fleet.domain.changes import (
    AddCredential,
    AddDevice,
    AddModel,
    AddStation,
    AddToken,
    Change,
    EndUnused,
    MarkUsed,
    MoveDevice,
    RevokeCredentials,
    RevokeToken,
    SetModel,
    SpendToken,
    Write,
)
from fleet.domain.errors import Conflict, Invalid
from fleet.storage import rows

_BYTES = frozenset({"fingerprint", "key_sha256", "der", "secret_sha256"})
_NUMBERS = frozenset(
    {"lifetime", "retain", "created_at", "not_before", "not_after", "issued_at"}
    | {"uses_max", "uses", "expires_at", "revoked_at"}
)


def _insert(table: str, names: tuple[str, ...]) -> str:
    types = ("bytea" if name in _BYTES else "bigint" if name in _NUMBERS else "text" for name in names)
    marks = ", ".join(f"${number}::{type_}" for number, type_ in enumerate(types, 1))
    return f"INSERT INTO {table} ({rows.columns(names)}) VALUES ({marks}) ON CONFLICT DO NOTHING"  # noqa: S608


_UNUSED = "holder = $1::text AND kind = $2::text AND state = 'issued' AND earned_by = $3::text"
STATEMENTS: dict[str, str] = {
    "add_model": _insert("model", rows.MODEL_COLUMNS),
    "set_model": """
        UPDATE model SET lifetime = $2::bigint, key_types = $3::text, publish = $4::text, subscribe = $5::text,
            retain = $6::bigint
        WHERE name = $1::text""",
    "add_device": _insert("device", rows.DEVICE_COLUMNS),
    "move_device": """
        UPDATE device SET state = $1::text WHERE id = $2::text AND state = ANY (string_to_array($3::text, ','))""",
    "key_is_free": """
        SELECT 1 WHERE NOT EXISTS (
            SELECT 1 FROM credential WHERE key_sha256 = $1::bytea
            AND (holder <> $2::text OR kind <> $3::text OR state = 'revoked'))""",
    "add_credential": _insert("credential", rows.CREDENTIAL_COLUMNS),
    "use_credential": """
        UPDATE credential SET state = 'active' WHERE fingerprint = $1::bytea AND state IN ('issued', 'active')""",
    "supersede_older": """
        UPDATE credential SET state = 'superseded'
        FROM (SELECT seq, holder, kind FROM credential WHERE fingerprint = $1::bytea) AS used
        WHERE credential.holder = used.holder AND credential.kind = used.kind
            AND credential.state IN ('issued', 'active') AND credential.seq < used.seq""",
    "newest_unused_is": f"""
        SELECT 1 WHERE $4::bytea IS NOT DISTINCT FROM
            (SELECT fingerprint FROM credential WHERE {_UNUSED} ORDER BY seq DESC LIMIT 1)""",  # noqa: S608
    "end_unused": f"UPDATE credential SET state = 'superseded' WHERE {_UNUSED}",  # noqa: S608
    "revoke_credentials": """
        UPDATE credential SET state = 'revoked'
        WHERE holder = $1::text AND kind = $2::text AND state IN ('issued', 'active', 'superseded')""",
    "add_token": _insert("token", rows.TOKEN_COLUMNS),
    "spend_token": """
        UPDATE token SET uses = uses + 1 WHERE id = $1::text AND revoked_at IS NULL AND uses < uses_max""",
    "revoke_token": "UPDATE token SET revoked_at = $2::bigint WHERE id = $1::text AND revoked_at IS NULL",
    "add_station": _insert("station", rows.STATION_COLUMNS),
}
"""Every statement that a step may be. Each parameter carries its type: text, bigint or bytea."""

_NUMBER_OF = {name: number for number, name in enumerate(STATEMENTS)}


@dataclass(frozen=True, slots=True)
class Step:
    """One statement with its parameters; `otherwise` is what it means when it finds no row, None when that is fine."""

    statement: str
    parameters: tuple[Any, ...]
    otherwise: Conflict | None = None


def steps_of(write: Write) -> Iterator[Step]:
    """What `write` is made of, in order."""
    match write:
        case AddModel(model=model):
            taken = Conflict("model-exists", f"Model {model.name} exists already.", "Change it with: fleet model set.")
            yield Step("add_model", rows.model_row(model), taken)
        case SetModel(model=model):
            none = Conflict("no-such-model", f"There is no model {model.name}.", "Add it with: fleet model add.")
            yield Step("set_model", rows.model_row(model), none)
        case AddDevice(device=device):
            taken = Conflict("device-exists", f"Device {device.id} exists already.")
            yield Step("add_device", rows.device_row(device), taken)
        case MoveDevice(device_id=device_id, allowed=allowed, to=to):
            moved = Conflict("device-moved", f"Device {device_id} is not in a state from which it can become {to}.")
            yield Step("move_device", (to.value, device_id, ",".join(state.value for state in allowed)), moved)
        case AddCredential(credential=credential):
            taken = Conflict("key-taken", "The key is another holder's, or was revoked.", "Make a new key.")
            yield Step("key_is_free", (credential.key_sha256, credential.holder, credential.kind.value), taken)
            known = Conflict("credential-exists", f"A certificate with serial {credential.serial} is recorded already.")
            yield Step("add_credential", rows.credential_row(credential), known)
        case MarkUsed(fingerprint=fingerprint):
            ended = Conflict("credential-ended", "The certificate is not usable any more.", "Enroll again.")
            yield Step("use_credential", (fingerprint,), ended)
            yield Step("supersede_older", (fingerprint,))
        case EndUnused(kind=kind, holder=holder, grant=grant, newest=newest):
            answered = Conflict("answered-already", f"{holder} has been given another certificate meanwhile.")
            yield Step("newest_unused_is", (holder, kind, grant, newest), answered)
            yield Step("end_unused", (holder, kind, grant))
        case RevokeCredentials(kind=kind, holder=holder):
            yield Step("revoke_credentials", (holder, kind))
        case AddToken(token=token):
            yield Step(
                "add_token", rows.token_row(token), Conflict("token-exists", f"Token {token.id} exists already.")
            )
        case SpendToken(token_id=token_id):
            spent = Conflict("token-spent", "The token is revoked or has no use left.", "Ask for a new one.")
            yield Step("spend_token", (token_id,), spent)
        case RevokeToken(token_id=token_id, at=at):
            gone = Conflict("token-gone", f"Token {token_id} does not exist or is revoked already.")
            yield Step("revoke_token", (token_id, rows.micros(at)), gone)
        case AddStation(station=station):
            taken = Conflict("station-exists", f"Station {station.name} exists already.", "Choose another name.")
            yield Step("add_station", rows.station_row(station), taken)
        case _:
            assert_never(write)


def names_of(write: Write) -> tuple[str, ...]:
    """What `write` looks at before it decides, by name: two that share a name must not be under way at once.

    The database's own row locks settle the rest. Taken for a whole batch at once and in one order, these locks also
    keep two batches from waiting for each other.
    """
    match write:
        case AddModel(model=model) | SetModel(model=model):
            return (f"model {model.name}",)
        case AddDevice(device=device):
            return (f"device {device.id}",)
        case MoveDevice(device_id=device_id):
            return (f"device {device_id}",)
        case AddCredential(credential=credential):
            return f"{credential.kind.value} {credential.holder}", f"key {credential.key_sha256.hex()}"
        case EndUnused(kind=kind, holder=holder) | RevokeCredentials(kind=kind, holder=holder):
            return (f"{kind} {holder}",)
        case MarkUsed(fingerprint=fingerprint):
            return (f"credential {fingerprint.hex()}",)
        case AddToken(token=token):
            return (f"token {token.id}",)
        case SpendToken(token_id=token_id) | RevokeToken(token_id=token_id):
            return (f"token {token_id}",)
        case AddStation(station=station):
            return (f"station {station.name}",)
        case _:
            assert_never(write)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A Change as it goes over the wire."""

    change: Change
    steps: tuple[Step, ...]
    text: str
    """The steps as JSON: a list of [statement, must find a row, parameters]."""
    locks: frozenset[int]

    def outcome(self, answer: str | None) -> Exception | None:
        """What the batch's answer for this Change means."""
        if answer is None:
            return None
        kind, _, rest = answer.partition(" ")
        if kind == "step":
            conflict = self.steps[int(rest)].otherwise
            assert conflict is not None  # noqa: S101  only a step that must find a row is named
            return conflict
        return Conflict("against-the-rules", f"The registry's own rules forbid this: {rest}.")


def prepared(change: Change) -> Prepared:
    """Raises: ValueError, Invalid (`not-text`): a text in it cannot be stored."""
    steps = tuple(step for write in change.writes for step in steps_of(write))
    entry = change.audit
    _must_be_text(entry.actor, entry.action, entry.subject, entry.outcome, entry.address)
    for event in change.events:
        _must_be_text(event.kind, event.subject, event.detail)
    text = json.dumps(
        [
            (_NUMBER_OF[step.statement], step.otherwise is not None, [_plain(one) for one in step.parameters])
            for step in steps
        ],
        ensure_ascii=False,
        separators=(",", ":"),
    )
    names = frozenset(name for write in change.writes for name in names_of(write))
    return Prepared(change, steps, text, frozenset(map(_lock_of, names)))


def _must_be_text(*texts: str) -> None:
    for text in texts:
        if "\0" in text:
            raise Invalid("not-text", "A text holds the character NUL, which PostgreSQL cannot store.")
        text.encode()


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        _must_be_text(value)
    return value.hex() if isinstance(value, bytes) else value


def _lock_of(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)


SEQUENCE_LOCK = "1179399217, 1"  # "FLT1": held by whoever numbers audit rows and events, until its COMMIT

_PARAMETER = re.compile(r"\$(\d+)::(text|bigint|bytea)")


def _in_function(statement: str) -> str:
    """`statement` inside a function, where its parameters are the elements of the JSON array `p`."""

    def parameter(found: re.Match[str]) -> str:
        text = f"(p->>{int(found[1]) - 1})"
        return {"text": text, "bigint": f"{text}::bigint", "bytea": f"decode({text}, 'hex')"}[found[2]]

    return re.sub(r"^\s*SELECT", "PERFORM", _PARAMETER.sub(parameter, statement), count=1)


_CASES = "\n".join(f"WHEN {number} THEN {_in_function(STATEMENTS[name])};" for name, number in _NUMBER_OF.items())

FUNCTIONS = f"""
CREATE FUNCTION pg_temp.fleet_step(statement int, p jsonb) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE found_rows bigint;
BEGIN
    CASE statement
    {_CASES}
    END CASE;
    GET DIAGNOSTICS found_rows = ROW_COUNT;
    RETURN found_rows;
END $$;

CREATE FUNCTION pg_temp.fleet_change(change jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE step jsonb; at int := 0;
BEGIN
    FOR step IN SELECT jsonb_array_elements(change) LOOP
        IF pg_temp.fleet_step((step->>0)::int, step->2) = 0 AND (step->>1)::boolean THEN
            RAISE EXCEPTION USING ERRCODE = 'FL001', MESSAGE = at::text;
        END IF;
        at := at + 1;
    END LOOP;
END $$;

-- One answer for each Change: null when it holds, "step N" when that step found no row, "rule …" when a constraint
-- forbids it. Nearly always all of them hold; only otherwise has each a savepoint of its own, for many of those in one
-- transaction slow down every reader.
CREATE FUNCTION pg_temp.fleet_batch(locks bigint[], changes jsonb[]) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE answers text[] := array_fill(NULL::text, ARRAY[cardinality(changes)]);
BEGIN
    PERFORM pg_advisory_xact_lock(name) FROM unnest(locks) AS name;
    BEGIN
        FOR n IN 1..cardinality(changes) LOOP
            PERFORM pg_temp.fleet_change(changes[n]);
        END LOOP;
        RETURN answers;
    EXCEPTION WHEN SQLSTATE 'FL001' OR integrity_constraint_violation OR data_exception THEN
        NULL; -- undone, all of it
    END;
    FOR n IN 1..cardinality(changes) LOOP
        BEGIN
            PERFORM pg_temp.fleet_change(changes[n]);
        EXCEPTION
            WHEN SQLSTATE 'FL001' THEN answers[n] := 'step ' || SQLERRM;
            WHEN integrity_constraint_violation OR data_exception THEN answers[n] := 'rule ' || SQLERRM;
        END;
    END LOOP;
    RETURN answers;
END $$;

-- Where the audit and the feed stand, for the one whose turn it is. Each statement in here sees what was committed
-- before it began.
CREATE FUNCTION pg_temp.fleet_turn(OUT audit_seq bigint, OUT audit_hash bytea, OUT event_seq bigint)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock({SEQUENCE_LOCK});
    SELECT seq, hash INTO audit_seq, audit_hash FROM audit ORDER BY seq DESC LIMIT 1;
    SELECT coalesce(max(seq), 0) INTO event_seq FROM event;
END $$;
"""
"""Run once in each writing session."""
