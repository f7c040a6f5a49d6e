"""Every statement that a write is made of, and the session's own functions (`pg_temp`) that run them.

A whole batch is one trip over the network however many Changes are in it, and the plans are kept. Two programs of
different versions may share a database: each brings its own functions.
"""

import re

from fleet.storage import mapping, request_rows
from fleet.storage.postgres import admission as postgres_admission

SEQUENCE_LOCK = "1179399217, 1"  # "FLT1": held by whoever numbers audit rows and events, until its COMMIT

_BYTES = frozenset({"fingerprint", "serial", "key_sha256", "der", "secret_sha256", "request_sha256"})
_NUMBERS = frozenset(
    {"lifetime", "retain", "revision", "created_at", "not_before", "not_after", "issued_at", "expires_at"}
    | {"quota", "day", "used"}
    | {"uses_max", "uses", "revoked_at", "status", "at"}
    | {"first_seen", "last_seen", "asked", "decided_at"}
)


def _insert(table: str, names: tuple[str, ...]) -> str:
    return f"INSERT INTO {table} ({mapping.columns(names)}) VALUES ({_marks(names)}) ON CONFLICT DO NOTHING"  # noqa: S608


def _marks(names: tuple[str, ...]) -> str:
    types = ("bytea" if name in _BYTES else "bigint" if name in _NUMBERS else "text" for name in names)
    return ", ".join(f"${number}::{type_}" for number, type_ in enumerate(types, 1))


_PENDING = "(SELECT count(*) FROM approval_request WHERE state = 'pending'"
_UNUSED = "holder = $1::text AND kind = $2::text AND state = 'issued' AND earned_by = $3::text"
STATEMENTS: dict[str, str] = {
    "add_model": _insert("model", mapping.MODEL_COLUMNS),
    "has_model": "SELECT 1 FROM model WHERE name = $1::text",
    "set_model": """
        UPDATE model SET lifetime = $2::bigint, key_types = $3::text, publish = $4::text, subscribe = $5::text,
            retain = $6::bigint, rules = $7::text, revision = revision + 1
        WHERE name = $1::text AND revision = $8::bigint""",
    "add_device": _insert("device", mapping.DEVICE_COLUMNS),
    "has_device": "SELECT 1 FROM device WHERE id = $1::text",
    "device_may_move": "SELECT 1 FROM device WHERE id = $1::text AND state = ANY (string_to_array($2::text, ','))",
    "move_device": """
        UPDATE device SET state = $1::text, expires_at = coalesce($2::bigint, expires_at), revision = revision + 1
        WHERE id = $3::text AND revision = coalesce($4::bigint, revision)
            AND state = ANY (string_to_array($5::text, ','))""",
    "tag_device": """
        UPDATE device SET tags = $2::text, groups = $3::text, revision = revision + 1
        WHERE id = $1::text AND revision = $4::bigint""",
    "add_tag": _insert("device_tag", ("key", "value", "device_id")),
    # Found by what the device's row says, before that is changed: a tag's row needs no index by its device.
    "drop_tags": """
        DELETE FROM device_tag USING (
            SELECT tag->>0 AS key, tag->>1 AS value
            FROM device, jsonb_array_elements(tags::jsonb) AS tag WHERE id = $1::text
            UNION ALL SELECT '', name
            FROM device, jsonb_array_elements_text(groups::jsonb) AS name WHERE id = $1::text) AS old
        WHERE device_tag.key = old.key AND device_tag.value = old.value AND device_tag.device_id = $1::text""",
    "key_is_free": """
        SELECT 1 WHERE NOT EXISTS (
            SELECT 1 FROM credential WHERE key_sha256 = $1::bytea
            AND (holder <> $2::text OR kind <> $3::text OR state = 'revoked'))
        AND NOT EXISTS (SELECT 1 FROM revoked_key WHERE key_sha256 = $1::bytea)""",
    "add_credential": _insert("credential", mapping.CREDENTIAL_COLUMNS),
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
    "end_credential": """
        UPDATE credential SET state = 'superseded' WHERE fingerprint = $1::bytea AND state IN ('issued', 'active')""",
    "revoke_credentials": """
        UPDATE credential SET state = 'revoked'
        WHERE holder = $1::text AND kind = $2::text AND state IN ('issued', 'active', 'superseded')""",
    # Locked, so that nobody revokes it between the look and its end.
    "credential_has_ended": """
        SELECT 1 FROM credential WHERE fingerprint = $1::bytea AND not_after <= $2::bigint FOR UPDATE""",
    "keep_revoked_key": """
        INSERT INTO revoked_key (key_sha256, kind, holder)
        SELECT key_sha256, kind, holder FROM credential WHERE fingerprint = $1::bytea AND state = 'revoked'
        ON CONFLICT DO NOTHING""",
    "drop_credential": "DELETE FROM credential WHERE fingerprint = $1::bytea",
    "add_token": _insert("token", mapping.TOKEN_COLUMNS),
    "spend_token": """
        UPDATE token SET uses = uses + 1 WHERE id = $1::text AND revoked_at IS NULL AND uses < uses_max""",
    "revoke_token": "UPDATE token SET revoked_at = $2::bigint WHERE id = $1::text AND revoked_at IS NULL",
    "add_station": _insert("station", mapping.STATION_COLUMNS),
    "add_operator": _insert("operator", mapping.OPERATOR_COLUMNS),
    "add_answer": _insert("answer", mapping.ANSWER_COLUMNS),
    # Whoever adds one holds the lock of them all: the counts are exact.
    "add_request": f"""
        INSERT INTO approval_request ({mapping.columns(request_rows.COLUMNS)}) SELECT {_marks(request_rows.COLUMNS)}
        WHERE {_PENDING}) < $18::bigint AND {_PENDING} AND model = $3::text) < $19::bigint
            AND {_PENDING} AND network = $8::text) < $20::bigint
        ON CONFLICT DO NOTHING""",
    "see_request": """
        UPDATE approval_request SET asked = asked + $2::bigint, last_seen = $3::bigint, address = $4::text
        WHERE id = $1::text""",
    "request_may_move": """
        SELECT 1 FROM approval_request
        WHERE id = $1::text AND expires_at > $2::bigint AND state = ANY (string_to_array($3::text, ','))""",
    "no_other_is_approved": """
        SELECT 1 WHERE NOT EXISTS (
            SELECT 1 FROM approval_request a JOIN approval_request b ON a.device_id = b.device_id
            WHERE a.id = $1::text AND b.id <> a.id AND b.state = 'approved' AND b.expires_at > $2::bigint)""",
    "decide_request": """
        UPDATE approval_request SET state = $2::text, decided_by = $3::text, decided_at = $4::bigint,
            reason = $5::text, expires_at = $6::bigint, revision = revision + 1
        WHERE id = $1::text AND revision = coalesce($7::bigint, revision)""",
    "deny_other_requests": """
        UPDATE approval_request SET state = 'denied', decided_by = $2::text, decided_at = $3::bigint,
            reason = $4::text, expires_at = $5::bigint, revision = revision + 1
        WHERE state = 'pending' AND id <> $1::text
            AND device_id = (SELECT device_id FROM approval_request WHERE id = $1::text)""",
    "collect_request": """
        UPDATE approval_request SET state = 'issued', revision = revision + 1
        WHERE id = $1::text AND state = 'approved'""",
    "drop_requests": "DELETE FROM approval_request WHERE expires_at <= $1::bigint",
    "take_lease": """
        INSERT INTO lease (name, owner, expires_at) VALUES ($1::text, $2::text, $3::bigint)
        ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at
        WHERE lease.owner = excluded.owner OR lease.expires_at <= $4::bigint OR $5::bigint = 1""",
    "drop_answers": "DELETE FROM answer WHERE at < $1::bigint",
    "drop_audit": """
        DELETE FROM audit WHERE seq <= $1::bigint AND $1::bigint < (SELECT max(seq) FROM audit)
            AND $1::bigint <= (SELECT max(size) FROM audit_head) AND $1::bigint % $2::bigint = 0""",
    **postgres_admission.STATEMENTS,
    "drop_events": "DELETE FROM event WHERE seq <= $1::bigint AND seq < (SELECT max(seq) FROM event)",
}
"""By name. Each parameter carries its type: text, bigint or bytea."""

NUMBER_OF = {name: number for number, name in enumerate(STATEMENTS)}
"""What a statement is called in a batch."""

_PARAMETER = re.compile(r"\$(\d+)::(text|bigint|bytea)")


def _in_function(statement: str) -> str:
    """`statement` inside a function, where its parameters are the elements of the JSON array `p`."""

    def parameter(found: re.Match[str]) -> str:
        text = f"(p->>{int(found[1]) - 1})"
        return {"text": text, "bigint": f"{text}::bigint", "bytea": f"decode({text}, 'hex')"}[found[2]]

    return re.sub(r"^\s*SELECT", "PERFORM", _PARAMETER.sub(parameter, statement), count=1)


_CASES = "\n".join(f"WHEN {number} THEN {_in_function(STATEMENTS[name])};" for name, number in NUMBER_OF.items())

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
DECLARE step jsonb; place int := 0;
BEGIN
    FOR step IN SELECT jsonb_array_elements(change) LOOP
        IF pg_temp.fleet_step((step->>0)::int, step->2) = 0 AND (step->>1)::boolean THEN
            RAISE EXCEPTION USING ERRCODE = 'FL001', MESSAGE = place::text;
        END IF;
        place := place + 1;
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
CREATE FUNCTION pg_temp.fleet_turn(OUT audit_seq bigint, OUT event_seq bigint) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock({SEQUENCE_LOCK});
    SELECT coalesce(max(seq), 0) INTO audit_seq FROM audit;
    SELECT coalesce(max(seq), 0) INTO event_seq FROM event;
END $$;
"""  # noqa: S608  our own constants
"""Run once in each writing session."""
