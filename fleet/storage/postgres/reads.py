"""Queries that differ on PostgreSQL: each is one statement, so one round trip and one snapshot."""

from itertools import islice
from typing import Any, TypeVar

from fleet.domain.credential import CredentialKind, CredentialState, KeyUse
from fleet.domain.device import Model
from fleet.domain.ports import EnrollmentFacts, HolderFacts
from fleet.storage import mapping
from fleet.storage.mapping import Table
from fleet.storage.queries import DEVICE_AND_MODEL, HELD_MAX, Query, first_cell, whole

T = TypeVar("T")

# The index holds each state's in order of seq: however many there are, no more than these are looked at; beside them
# those that the caller needs whatever was issued later.
_NEWEST = """SELECT * FROM credential
            WHERE holder = $1 AND kind = 'device' AND state = '{}' ORDER BY seq DESC LIMIT {}"""
_ALSO = f"""(SELECT * FROM credential WHERE fingerprint = $4::bytea)
            UNION ALL (SELECT * FROM credential
                WHERE holder = $1 AND kind = 'device' AND state = 'issued' AND key_sha256 = $3::bytea
                ORDER BY seq DESC LIMIT 1)
            UNION ALL (SELECT * FROM credential
                WHERE $5::text IS NOT NULL AND holder = $1 AND kind = 'device' AND state = 'issued'
                    AND earned_by = $5::text
                ORDER BY seq DESC LIMIT {HELD_MAX})"""
_NEW = " UNION ALL ".join(f"({_NEWEST.format(state, HELD_MAX)})" for state in ("issued", "active", "revoked"))
_HELD = f"SELECT DISTINCT ON (seq) * FROM ({_NEW} UNION ALL {_ALSO}) AS each ORDER BY seq"
_DEVICE_END = len(mapping.DEVICE.columns)
_TOKEN_END = len(mapping.TOKEN.columns)


def _enrollment_facts(row: Any) -> EnrollmentFacts:
    with_model, its_token, held, uses = row
    found = tuple(with_model) if with_model is not None else None
    token = tuple(its_token) if its_token is not None else None
    return EnrollmentFacts(
        device=mapping.DEVICE.of(found[:_DEVICE_END]) if found else None,
        model=_model(found[_DEVICE_END:]) if found else _model(token[_TOKEN_END:]) if token else None,
        credentials=tuple(map(mapping.CREDENTIAL.of, held)),
        token=mapping.TOKEN.of(token[:_TOKEN_END]) if token else None,
        key_uses=tuple(KeyUse(CredentialKind(kind), holder, CredentialState(state)) for kind, holder, state in uses),
    )


def _model(columns: mapping.Row) -> Model | None:
    return mapping.MODEL.of(columns) if columns[0] is not None else None


ENROLLMENT = Query(
    f"""
    SELECT
        (SELECT ROW({DEVICE_AND_MODEL}) FROM device d JOIN model m ON m.name = d.model WHERE d.id = $1),
        (SELECT ROW({mapping.TOKEN.listed("t")}, {mapping.MODEL.listed("m")})
            FROM token t LEFT JOIN model m ON m.name = t.model WHERE t.id = $2),
        ARRAY(SELECT ROW({mapping.CREDENTIAL.listed()}) FROM ({_HELD}) AS held ORDER BY seq),
        ARRAY(SELECT ROW(kind, holder, state) FROM
            (SELECT DISTINCT kind, holder, state FROM credential WHERE key_sha256 = $3
            UNION ALL SELECT kind, holder, 'revoked' FROM revoked_key WHERE key_sha256 = $3) AS used)""",
    _enrollment_facts,
)


def _holder_facts(row: Any) -> HolderFacts:
    cells = iter(row)

    def next_(table: Table[T]) -> T | None:
        part = tuple(islice(cells, len(table.columns)))
        return table.of(part) if part[0] is not None else None

    credential = mapping.CREDENTIAL.of(tuple(islice(cells, len(mapping.CREDENTIAL.columns))))
    device, model = next_(mapping.DEVICE), next_(mapping.MODEL)
    station, operator, claim = next_(mapping.STATION), next_(mapping.OPERATOR), next_(mapping.CLAIM)
    distrusts = tuple(mapping.DISTRUST.of(tuple(each)) for each in next(cells))
    return HolderFacts(credential, device, model, station, operator, claim, distrusts)


HOLDER = Query(
    f"""
    SELECT {mapping.CREDENTIAL.listed("c")}, {DEVICE_AND_MODEL}, {mapping.STATION.listed("s")},
        {mapping.OPERATOR.listed("o")}, {mapping.CLAIM.listed("k")},
        ARRAY(SELECT ROW({mapping.DISTRUST.listed()}) FROM distrust ORDER BY id)
    FROM credential c
    LEFT JOIN device d ON c.kind = 'device' AND d.id = c.holder
    LEFT JOIN model m ON m.name = d.model
    LEFT JOIN station s ON c.kind = 'station' AND s.name = c.holder
    LEFT JOIN operator o ON c.kind = 'operator' AND o.name = c.holder
    LEFT JOIN claim k ON c.kind = 'claim' AND k.name = c.holder
    WHERE c.fingerprint = $1""",
    _holder_facts,
)

_ENTRY = f"SELECT {mapping.MANIFEST.listed('m')} FROM manifest m"
ENTRIES = Query(
    f"""
    {_ENTRY} WHERE m.device_id = ANY ($1::text[])
    UNION {_ENTRY} JOIN unnest($2::text[], $3::text[]) AS s (model, serial)
        ON m.model = s.model AND m.serial_key = s.serial AND m.serial_key <> ''
    UNION {_ENTRY} WHERE m.key_sha256 = ANY ($4::bytea[])
    ORDER BY device_id""",
    mapping.MANIFEST.of,
)
SERIAL_HOLDERS: Query[tuple[str, str, str]] = Query(
    """
    SELECT d.model, d.hardware_serial, d.id FROM device d JOIN unnest($1::text[], $2::text[]) AS s (model, serial)
        ON d.model = s.model AND d.serial_key = s.serial
    WHERE d.serial_key <> '' AND d.state NOT IN ('revoked', 'retired')""",
    whole,
)
KNOWN_DEVICES: Query[str] = Query("SELECT id FROM device WHERE id = ANY ($1::text[])", first_cell)
