"""Manifest, claims, makers' CAs and quotas on PostgreSQL: statements and steps of their writes, and their questions."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, assert_never

from fleet.domain.changes import (
    AddAnchor,
    AddClaim,
    BindIdevid,
    CountTakeover,
    DropAnchor,
    ListDevices,
    QuarantineClaim,
    ReleaseClaim,
    RevokeClaim,
    SetStation,
    SpendClaim,
    SpendStation,
)
from fleet.domain.errors import Conflict
from fleet.storage import admission_rows as columns
from fleet.storage import conflicts, mapping

AdmissionWrite = (
    ListDevices
    | AddClaim
    | SpendClaim
    | CountTakeover
    | QuarantineClaim
    | ReleaseClaim
    | RevokeClaim
    | AddAnchor
    | DropAnchor
    | BindIdevid
    | SetStation
    | SpendStation
)

_BYTES = frozenset({"key_sha256", "row_sha256", "fingerprint", "der"})
_NUMBERS = frozenset(
    {"quota", "uses", "created_at", "expires_at", "takeovers", "quarantined_at", "revoked_at", "bound_at", "revision"}
)


def _type(name: str) -> str:
    return "bytea" if name in _BYTES else "bigint" if name in _NUMBERS else "text"


def _insert(table: str, names: tuple[str, ...]) -> str:
    marks = ", ".join(f"${number}::{_type(name)}" for number, name in enumerate(names, 1))
    return f"INSERT INTO {table} ({mapping.columns(names)}) VALUES ({marks}) ON CONFLICT DO NOTHING"  # noqa: S608


_ROWS = "jsonb_array_elements($1::text::jsonb) AS r"


def _insert_all(table: str, names: tuple[str, ...]) -> str:
    """All rows of a JSON array of arrays in one statement: a Change brings hundreds."""
    cells = ", ".join(
        f"decode(r->>{n}, 'hex')" if name in _BYTES else f"(r->>{n})::{_type(name)}" for n, name in enumerate(names)
    )
    return (
        f"INSERT INTO {table} ({mapping.columns(names)}) "  # noqa: S608
        f"SELECT {cells} FROM {_ROWS} ON CONFLICT DO NOTHING"
    )


STATEMENTS = {
    "has_models": f"SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM {_ROWS} LEFT JOIN model m ON m.name = r->>1 WHERE m.name IS NULL)",  # noqa: E501, S608  fmt: skip
    "devices_are_new": f"SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM {_ROWS} JOIN device d ON d.id = r->>0)",  # noqa: S608
    # Whoever came between the look and the rows has kept some of them out.
    "devices_are_ours": f"""
        SELECT 1 WHERE jsonb_array_length($1::text::jsonb) = (SELECT count(*) FROM {_ROWS}
            JOIN device d ON d.id = r->>0 AND d.model = r->>1 AND d.created_at = (r->>3)::bigint)""",  # noqa: S608
    "tags_are_ours": f"""
        SELECT 1 WHERE jsonb_array_length($1::text::jsonb) = (SELECT count(*) FROM {_ROWS}
            JOIN device_tag t ON t.key = r->>0 AND t.value = r->>1 AND t.device_id = r->>2)""",  # noqa: S608
    "entries_are_ours": f"""
        SELECT 1 WHERE jsonb_array_length($1::text::jsonb) = (SELECT count(*) FROM {_ROWS}
            JOIN manifest m ON m.device_id = r->>0 AND m.row_sha256 = decode(r->>4, 'hex'))""",  # noqa: S608
    "list_devices": _insert_all("device", mapping.DEVICE_COLUMNS),
    "list_tags": _insert_all("device_tag", ("key", "value", "device_id")),
    "list_entries": _insert_all("manifest", columns.MANIFEST_COLUMNS),
    "add_claim": _insert("claim", columns.CLAIM_COLUMNS),
    "spend_claim": """
        UPDATE claim SET uses = uses + 1
        WHERE name = $1::text AND revoked_at IS NULL AND quarantined_at IS NULL AND uses < quota""",
    "count_takeover": "UPDATE claim SET takeovers = takeovers + 1 WHERE name = $1::text",
    "quarantine_claim": """
        UPDATE claim SET quarantined_at = $2::bigint, quarantine_reason = $3::text
        WHERE name = $1::text AND quarantined_at IS NULL AND revoked_at IS NULL""",
    "release_claim": """
        UPDATE claim SET quarantined_at = NULL, quarantine_reason = '', takeovers = 0
        WHERE name = $1::text AND quarantined_at IS NOT NULL AND revoked_at IS NULL""",
    "revoke_claim": "UPDATE claim SET revoked_at = $2::bigint WHERE name = $1::text AND revoked_at IS NULL",
    "add_anchor": _insert("anchor", columns.ANCHOR_COLUMNS),
    "drop_anchor": "DELETE FROM anchor WHERE name = $1::text",
    # Locked, so that nobody removes it between the look and the end.
    "has_anchor": "SELECT 1 FROM anchor WHERE name = $1::text FOR SHARE",
    "bind_idevid": _insert("idevid", columns.IDEVID_COLUMNS),
    "is_bound": "SELECT 1 FROM idevid WHERE key_sha256 = $1::bytea AND device_id = $2::text",
    "set_station": "UPDATE station SET quota = $2::bigint WHERE name = $1::text",
    # A node whose clock is still in the day before counts in the later one: two that disagree at midnight are no way
    # round.
    "spend_station": """
        UPDATE station SET used = CASE WHEN day IN ($2::bigint, $2::bigint + 1) THEN used + 1 ELSE 1 END,
            day = CASE WHEN day = $2::bigint + 1 THEN day ELSE $2::bigint END
        WHERE name = $1::text AND (quota = 0 OR day NOT IN ($2::bigint, $2::bigint + 1) OR used < quota)""",
}

Steps = Iterator[tuple[str, tuple[Any, ...], Conflict | None]]


def steps_of(write: AdmissionWrite) -> Steps:
    """(statement, parameters, what it means when it finds no row) of each step, in order."""
    match write:
        case ListDevices(listed=listed):
            taken = conflicts.listed_already()
            devices = (_json(mapping.device_row(each.device) for each in listed),)
            entries = (_json(columns.manifest_row(each.entry) for each in listed),)
            yield "has_models", devices, conflicts.no_such_model()
            yield "devices_are_new", devices, taken
            yield "list_devices", devices, None
            yield "devices_are_ours", devices, taken
            yield "list_entries", entries, None
            yield "entries_are_ours", entries, taken
            tags = [row for each in listed for row in mapping.tag_rows(each.device)]
            if tags:
                yield "list_tags", (_json(tags),), None
                yield "tags_are_ours", (_json(tags),), taken
        case AddClaim(claim=claim):
            yield "add_claim", columns.claim_row(claim), conflicts.claim_exists(claim.name)
        case SpendClaim(name=name):
            yield "spend_claim", (name,), conflicts.claim_spent()
        case CountTakeover(name=name):
            yield "count_takeover", (name,), None
        case QuarantineClaim(name=name, at=at, reason=reason):
            yield "quarantine_claim", (name, mapping.micros(at), reason), conflicts.claim_not_open(name)
        case ReleaseClaim(name=name):
            yield "release_claim", (name,), conflicts.claim_not_quarantined(name)
        case RevokeClaim(name=name, at=at):
            yield "revoke_claim", (name, mapping.micros(at)), conflicts.claim_gone(name)
        case AddAnchor(anchor=anchor):
            yield "add_anchor", columns.anchor_row(anchor), conflicts.anchor_exists(anchor.name)
        case DropAnchor(name=name):
            yield "drop_anchor", (name,), conflicts.no_such_anchor(name)
        case BindIdevid(binding=binding):
            yield "has_anchor", (binding.anchor,), conflicts.idevid_taken()
            yield "bind_idevid", columns.idevid_row(binding), None
            yield "is_bound", (binding.key_sha256, binding.device_id), conflicts.idevid_taken()
        case SetStation(name=name, quota=quota):
            yield "set_station", (name, quota), conflicts.no_such_station(name)
        case SpendStation(name=name, day=day):
            yield "spend_station", (name, day), conflicts.station_spent(name)
        case _:
            assert_never(write)


def names_of(write: AdmissionWrite) -> tuple[str, ...]:
    """What `write` looks at before it decides: see `fleet.storage.postgres.writes.names_of`."""
    match write:
        case ListDevices():
            return ("the manifest",)
        case AddClaim(claim=claim):
            return (f"claim {claim.name}",)
        case SpendClaim(name=name) | CountTakeover(name=name) | QuarantineClaim(name=name):
            return (f"claim {name}",)
        case ReleaseClaim(name=name) | RevokeClaim(name=name):
            return (f"claim {name}",)
        case AddAnchor(anchor=anchor):
            return (f"anchor {anchor.name}",)
        case DropAnchor(name=name):
            return (f"anchor {name}",)
        case BindIdevid(binding=binding):
            return f"anchor {binding.anchor}", f"idevid {binding.key_sha256.hex()}", f"idevid of {binding.device_id}"
        case SetStation(name=name) | SpendStation(name=name):
            return (f"station {name}",)
        case _:
            assert_never(write)


def _json(found: Any) -> str:
    plain = [[cell.hex() if isinstance(cell, bytes) else cell for cell in row] for row in found]
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def _select(table: str, names: tuple[str, ...], rest: str) -> str:
    return f"SELECT {mapping.columns(names)} FROM {table} {rest}"  # noqa: S608  our own constants


CLAIM = _select("claim", columns.CLAIM_COLUMNS, "WHERE name = $1")
CLAIMS = _select("claim", columns.CLAIM_COLUMNS, "ORDER BY name")
ANCHORS = _select("anchor", columns.ANCHOR_COLUMNS, "ORDER BY name")
BINDINGS = _select("idevid", columns.IDEVID_COLUMNS, "WHERE key_sha256 = $1 OR device_id = $2 ORDER BY device_id")
_ENTRY = f"SELECT {mapping.columns(columns.MANIFEST_COLUMNS, 'm')} FROM manifest m"  # noqa: S608
ENTRIES = f"""
    {_ENTRY} WHERE m.device_id = ANY ($1::text[])
    UNION {_ENTRY} JOIN unnest($2::text[], $3::text[]) AS s (model, serial)
        ON m.model = s.model AND m.hardware_serial = s.serial AND m.hardware_serial <> ''
    UNION {_ENTRY} WHERE m.key_sha256 = ANY ($4::bytea[])
    ORDER BY device_id"""
DEVICES = "SELECT id FROM device WHERE id = ANY ($1::text[])"


def manifest_parameters(
    device_ids: Sequence[str], serials: Sequence[tuple[str, str]], keys: Sequence[bytes]
) -> tuple[list[str], list[str], list[str], list[bytes]]:
    """Those of ENTRIES."""
    return list(device_ids), [model for model, _ in serials], [serial for _, serial in serials], list(keys)
