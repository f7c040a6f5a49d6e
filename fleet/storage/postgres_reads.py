"""The registry's questions as SQL for PostgreSQL. Each is one statement: one trip, and one moment."""

from itertools import islice
from typing import Any

from fleet.domain.credential import CredentialKind, CredentialState, KeyUse
from fleet.domain.device import Model
from fleet.domain.ports import EnrollmentFacts, HolderFacts
from fleet.storage import admission_rows, request_rows, rows

HELD_MAX = 16  # of a device's certificates in one state: an enrollment needs the newest of them


def _select(table: str, names: tuple[str, ...], rest: str) -> str:
    return f"SELECT {rows.columns(names)} FROM {table} {rest}"  # noqa: S608  our own constants


MODEL = _select("model", rows.MODEL_COLUMNS, "WHERE name = $1")
MODELS = _select("model", rows.MODEL_COLUMNS, "ORDER BY name")
DEVICE = _select("device", rows.DEVICE_COLUMNS, "WHERE id = $1")
CREDENTIALS = _select("credential", rows.CREDENTIAL_COLUMNS, "WHERE holder = $1 ORDER BY seq")
TOKEN = _select("token", rows.TOKEN_COLUMNS, "WHERE id = $1")
TOKENS = _select("token", rows.TOKEN_COLUMNS, "ORDER BY created_at DESC, seq DESC")
STATION = _select("station", rows.STATION_COLUMNS, "WHERE name = $1")
STATIONS = _select("station", rows.STATION_COLUMNS, "ORDER BY name")
OPERATOR = _select("operator", rows.OPERATOR_COLUMNS, "WHERE name = $1")
OPERATORS = _select("operator", rows.OPERATOR_COLUMNS, "ORDER BY name")
ANSWER = _select("answer", rows.ANSWER_COLUMNS, "WHERE actor = $1 AND key = $2")
LEASE = _select("lease", rows.LEASE_COLUMNS, "WHERE name = $1")
REQUEST = f"{request_rows.SELECT} WHERE id = $1"
PENDING = request_rows.counting("$")
CREDENTIAL = _select("credential", rows.CREDENTIAL_COLUMNS, "WHERE serial = $1")

# The index holds each state's in order of seq: however many there are, no more than these are looked at.
_NEWEST = """SELECT * FROM credential
            WHERE holder = $1 AND kind = 'device' AND state = '{}' ORDER BY seq DESC LIMIT {}"""
_HELD = " UNION ALL ".join(f"({_NEWEST.format(state, HELD_MAX)})" for state in ("issued", "active", "revoked"))
_DEVICE_AND_MODEL = f"{rows.columns(rows.DEVICE_COLUMNS, 'd')}, {rows.columns(rows.MODEL_COLUMNS, 'm')}"
_TOKEN_AND_MODEL = f"{rows.columns(rows.TOKEN_COLUMNS, 't')}, {rows.columns(rows.MODEL_COLUMNS, 'm')}"
_DEVICE_END = len(rows.DEVICE_COLUMNS)
_TOKEN_END = len(rows.TOKEN_COLUMNS)
ENROLLMENT = f"""
    SELECT
        (SELECT ROW({_DEVICE_AND_MODEL}) FROM device d JOIN model m ON m.name = d.model WHERE d.id = $1),
        (SELECT ROW({_TOKEN_AND_MODEL}) FROM token t LEFT JOIN model m ON m.name = t.model WHERE t.id = $2),
        ARRAY(SELECT ROW({rows.columns(rows.CREDENTIAL_COLUMNS)}) FROM ({_HELD}) AS held ORDER BY seq),
        ARRAY(SELECT ROW(kind, holder, state) FROM
            (SELECT DISTINCT kind, holder, state FROM credential WHERE key_sha256 = $3
            UNION ALL SELECT kind, holder, 'revoked' FROM revoked_key WHERE key_sha256 = $3) AS used)"""  # noqa: S608
HOLDER = f"""
    SELECT {rows.columns(rows.CREDENTIAL_COLUMNS, "c")}, {_DEVICE_AND_MODEL},
        {rows.columns(rows.STATION_COLUMNS, "s")}, {rows.columns(rows.OPERATOR_COLUMNS, "o")},
        {rows.columns(admission_rows.CLAIM_COLUMNS, "k")}
    FROM credential c
    LEFT JOIN device d ON c.kind = 'device' AND d.id = c.holder
    LEFT JOIN model m ON m.name = d.model
    LEFT JOIN station s ON c.kind = 'station' AND s.name = c.holder
    LEFT JOIN operator o ON c.kind = 'operator' AND o.name = c.holder
    LEFT JOIN claim k ON c.kind = 'claim' AND k.name = c.holder
    WHERE c.fingerprint = $1"""  # noqa: S608


def enrollment_facts(row: Any) -> EnrollmentFacts:
    """What one row of ENROLLMENT says."""
    with_model, its_token, held, uses = (row[0], row[1], row[2], row[3])
    found = tuple(with_model) if with_model is not None else None
    token = tuple(its_token) if its_token is not None else None
    return EnrollmentFacts(
        device=rows.device_of(found[:_DEVICE_END]) if found else None,
        model=_model(found[_DEVICE_END:]) if found else _model(token[_TOKEN_END:]) if token else None,
        credentials=tuple(rows.credential_of(tuple(one)) for one in held),
        token=rows.token_of(token[:_TOKEN_END]) if token else None,
        key_uses=tuple(KeyUse(CredentialKind(kind), holder, CredentialState(state)) for kind, holder, state in uses),
    )


def _model(columns: rows.Row) -> Model | None:
    return rows.model_of(*columns) if columns[0] is not None else None


def holder_facts(row: Any) -> HolderFacts:
    """What one row of HOLDER says."""
    columns = iter(row)

    def next_(names: tuple[str, ...]) -> rows.Row:
        return tuple(islice(columns, len(names)))

    credential = rows.credential_of(next_(rows.CREDENTIAL_COLUMNS))
    device, model = next_(rows.DEVICE_COLUMNS), next_(rows.MODEL_COLUMNS)
    station, operator = next_(rows.STATION_COLUMNS), next_(rows.OPERATOR_COLUMNS)
    claim = next_(admission_rows.CLAIM_COLUMNS)
    return HolderFacts(
        credential=credential,
        device=rows.device_of(device) if device[0] is not None else None,
        model=_model(model),
        station=rows.station_of(station) if station[0] is not None else None,
        operator=rows.operator_of(operator) if operator[0] is not None else None,
        claim=admission_rows.claim_of(claim) if claim[0] is not None else None,
    )
