"""Session-local functions (`pg_temp`) that execute a whole batch of Changes in one round trip.

They hold every statement of a write, so its plan is cached. Programs of different versions may share a database: each
defines its own functions.
"""

import re
from typing import Any

from fleet.storage.mapping import DEVICE, MANIFEST, TAG, Table
from fleet.storage.statement import Statement
from fleet.storage.statements import LISTED_ALREADY, NO_SUCH_MODEL, STATEMENTS

SEQUENCE_LOCK = "1179399217, 1"  # "FLT1": held while audit rows and events are numbered, until COMMIT

_ROWS = "jsonb_array_elements($1::text::jsonb) AS r"


def _insert_all(table: Table[Any]) -> str:
    """All rows of a JSON array of arrays in one statement: a Change brings hundreds."""
    cells = ", ".join(
        f"decode(r->>{n}, 'hex')" if type_ == "bytea" else f"(r->>{n})::{type_}" for n, type_ in enumerate(table.types)
    )
    return f"INSERT INTO {table.name} ({table.listed()}) SELECT {cells} FROM {_ROWS} ON CONFLICT DO NOTHING"


def _all_inserted(joined: str) -> str:
    """Fails when another session has inserted one of the rows since we checked."""
    return f"SELECT 1 WHERE jsonb_array_length($1::text::jsonb) = (SELECT count(*) FROM {_ROWS} JOIN {joined})"


HAVE_MODELS = Statement(
    f"SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM {_ROWS} LEFT JOIN model m ON m.name = r->>1 WHERE m.name IS NULL)",
    *NO_SUCH_MODEL,
)
DEVICES_ARE_NEW = Statement(
    f"SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM {_ROWS} JOIN device d ON d.id = r->>0)", *LISTED_ALREADY
)
LIST_DEVICES = Statement(_insert_all(DEVICE))
DEVICES_INSERTED = Statement(
    _all_inserted("device d ON d.id = r->>0 AND d.model = r->>1 AND d.created_at = (r->>3)::bigint"), *LISTED_ALREADY
)
SERIALS_ARE_FREE = Statement(
    f"""
    SELECT 1 WHERE NOT EXISTS (
        SELECT 1 FROM {_ROWS} JOIN device mine ON mine.id = r->>0
            JOIN device d ON d.serial_key = mine.serial_key AND d.model = mine.model AND d.id <> mine.id
        WHERE d.serial_key <> '' AND d.state NOT IN ('revoked', 'retired'))""",
    *LISTED_ALREADY,
)
LIST_ENTRIES = Statement(_insert_all(MANIFEST))
ENTRIES_INSERTED = Statement(
    _all_inserted("manifest m ON m.device_id = r->>0 AND m.row_sha256 = decode(r->>4, 'hex')"), *LISTED_ALREADY
)
LIST_TAGS = Statement(_insert_all(TAG))
TAGS_INSERTED = Statement(
    _all_inserted("device_tag t ON t.key = r->>0 AND t.value = r->>1 AND t.device_id = r->>2"), *LISTED_ALREADY
)
# Found by the device's own row, before that is changed: `device_tag` has no index by device.
DROP_TAGS = Statement("""
    DELETE FROM device_tag USING (
        SELECT tag->>0 AS key, tag->>1 AS value
        FROM device, jsonb_array_elements(tags::jsonb) AS tag WHERE id = $1::text
        UNION ALL SELECT '', name
        FROM device, jsonb_array_elements_text(groups::jsonb) AS name WHERE id = $1::text) AS old
    WHERE device_tag.key = old.key AND device_tag.value = old.value AND device_tag.device_id = $1::text""")

ALL = STATEMENTS | {name: each for name, each in list(globals().items()) if isinstance(each, Statement)}
"""Every statement that a batch may run, by its name: those of every engine, and those above."""
NUMBER_OF = {statement: number for number, statement in enumerate(ALL.values())}
"""The number of a statement in a batch."""

_PARAMETER = re.compile(r"\$(\d+)::(text|bigint|bytea)")


def _in_function(statement: str) -> str:
    """`statement` inside a function, where its parameters are the elements of the JSON array `p`."""

    def parameter(found: re.Match[str]) -> str:
        text = f"(p->>{int(found[1]) - 1})"
        return {"text": text, "bigint": f"{text}::bigint", "bytea": f"decode({text}, 'hex')"}[found[2]]

    return re.sub(r"^\s*SELECT", "PERFORM", _PARAMETER.sub(parameter, statement), count=1)


_CASES = "\n".join(f"WHEN {number} THEN {_in_function(each.sql)};" for each, number in NUMBER_OF.items())

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

-- One answer for each Change: null without a conflict, "step N" when that step found no row, "rule …" when a constraint
-- was violated. Nearly always there is none; only then each gets a savepoint, for many of those in one transaction slow
-- down every reader.
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

-- The last numbers of audit and feed, under the sequence lock. Each statement in here sees what was committed before it
-- began.
CREATE FUNCTION pg_temp.fleet_turn(OUT audit_seq bigint, OUT event_seq bigint) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock({SEQUENCE_LOCK});
    SELECT coalesce(max(seq), 0) INTO audit_seq FROM audit;
    SELECT coalesce(max(seq), 0) INTO event_seq FROM event;
END $$;
"""
"""Run once in each writing session."""
