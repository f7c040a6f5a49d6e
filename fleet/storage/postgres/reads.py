"""The registry's questions as SQL for PostgreSQL. Each is one statement: one trip, and one moment."""

from itertools import islice
from typing import Any

from fleet.domain.credential import CredentialKind, CredentialState, KeyUse
from fleet.domain.device import Model
from fleet.domain.ports import EnrollmentFacts, HolderFacts
from fleet.storage import admission_rows, mapping, request_rows

HELD_MAX = 16  # of a device's certificates in one state: an enrollment needs the newest of them


def _select(table: str, names: tuple[str, ...], rest: str) -> str:
    return f"SELECT {mapping.columns(names)} FROM {table} {rest}"  # noqa: S608  our own constants


MODEL = _select("model", mapping.MODEL_COLUMNS, "WHERE name = $1")
MODELS = _select("model", mapping.MODEL_COLUMNS, "ORDER BY name")
DEVICE = _select("device", mapping.DEVICE_COLUMNS, "WHERE id = $1")
CREDENTIALS = _select("credential", mapping.CREDENTIAL_COLUMNS, "WHERE holder = $1 ORDER BY seq")
TOKEN = _select("token", mapping.TOKEN_COLUMNS, "WHERE id = $1")
TOKENS = _select("token", mapping.TOKEN_COLUMNS, "ORDER BY created_at DESC, seq DESC")
STATION = _select("station", mapping.STATION_COLUMNS, "WHERE name = $1")
STATIONS = _select("station", mapping.STATION_COLUMNS, "ORDER BY name")
OPERATOR = _select("operator", mapping.OPERATOR_COLUMNS, "WHERE name = $1")
OPERATORS = _select("operator", mapping.OPERATOR_COLUMNS, "ORDER BY name")
ANSWER = _select("answer", mapping.ANSWER_COLUMNS, "WHERE actor = $1 AND key = $2")
LEASE = _select("lease", mapping.LEASE_COLUMNS, "WHERE name = $1")
REQUEST = f"{request_rows.SELECT} WHERE id = $1"
PENDING = request_rows.counting("$")
CREDENTIAL = _select("credential", mapping.CREDENTIAL_COLUMNS, "WHERE serial = $1")

# The index holds each state's in order of seq: however many there are, no more than these are looked at.
_NEWEST = """SELECT * FROM credential
            WHERE holder = $1 AND kind = 'device' AND state = '{}' ORDER BY seq DESC LIMIT {}"""
_HELD = " UNION ALL ".join(f"({_NEWEST.format(state, HELD_MAX)})" for state in ("issued", "active", "revoked"))
_DEVICE_AND_MODEL = f"{mapping.columns(mapping.DEVICE_COLUMNS, 'd')}, {mapping.columns(mapping.MODEL_COLUMNS, 'm')}"
_TOKEN_AND_MODEL = f"{mapping.columns(mapping.TOKEN_COLUMNS, 't')}, {mapping.columns(mapping.MODEL_COLUMNS, 'm')}"
_DEVICE_END = len(mapping.DEVICE_COLUMNS)
_TOKEN_END = len(mapping.TOKEN_COLUMNS)
ENROLLMENT = f"""
    SELECT
        (SELECT ROW({_DEVICE_AND_MODEL}) FROM device d JOIN model m ON m.name = d.model WHERE d.id = $1),
        (SELECT ROW({_TOKEN_AND_MODEL}) FROM token t LEFT JOIN model m ON m.name = t.model WHERE t.id = $2),
        ARRAY(SELECT ROW({mapping.columns(mapping.CREDENTIAL_COLUMNS)}) FROM ({_HELD}) AS held ORDER BY seq),
        ARRAY(SELECT ROW(kind, holder, state) FROM
            (SELECT DISTINCT kind, holder, state FROM credential WHERE key_sha256 = $3
            UNION ALL SELECT kind, holder, 'revoked' FROM revoked_key WHERE key_sha256 = $3) AS used)"""  # noqa: S608
HOLDER = f"""
    SELECT {mapping.columns(mapping.CREDENTIAL_COLUMNS, "c")}, {_DEVICE_AND_MODEL},
        {mapping.columns(mapping.STATION_COLUMNS, "s")}, {mapping.columns(mapping.OPERATOR_COLUMNS, "o")},
        {mapping.columns(admission_rows.CLAIM_COLUMNS, "k")}
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
        device=mapping.device_of(found[:_DEVICE_END]) if found else None,
        model=_model(found[_DEVICE_END:]) if found else _model(token[_TOKEN_END:]) if token else None,
        credentials=tuple(mapping.credential_of(tuple(one)) for one in held),
        token=mapping.token_of(token[:_TOKEN_END]) if token else None,
        key_uses=tuple(KeyUse(CredentialKind(kind), holder, CredentialState(state)) for kind, holder, state in uses),
    )


def _model(columns: mapping.Row) -> Model | None:
    return mapping.model_of(*columns) if columns[0] is not None else None


def holder_facts(row: Any) -> HolderFacts:
    """What one row of HOLDER says."""
    columns = iter(row)

    def next_(names: tuple[str, ...]) -> mapping.Row:
        return tuple(islice(columns, len(names)))

    credential = mapping.credential_of(next_(mapping.CREDENTIAL_COLUMNS))
    device, model = next_(mapping.DEVICE_COLUMNS), next_(mapping.MODEL_COLUMNS)
    station, operator = next_(mapping.STATION_COLUMNS), next_(mapping.OPERATOR_COLUMNS)
    claim = next_(admission_rows.CLAIM_COLUMNS)
    return HolderFacts(
        credential=credential,
        device=mapping.device_of(device) if device[0] is not None else None,
        model=_model(model),
        station=mapping.station_of(station) if station[0] is not None else None,
        operator=mapping.operator_of(operator) if operator[0] is not None else None,
        claim=admission_rows.claim_of(claim) if claim[0] is not None else None,
    )
