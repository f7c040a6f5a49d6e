"""Listings as SQL: devices by any filter, what has expired, what will. Each runs in a reader's own thread."""

import sqlite3
from datetime import UTC, datetime, timedelta
from typing import Any

from fleet.domain.credential import Credential
from fleet.domain.device import Device, DeviceFilter, DeviceState, Place
from fleet.storage import mapping

LIST_MAX = 10_000  # rows of a listing at once, whatever was asked for

# Each term stands as an index has it, true as it is, so that the planner may use that index.
_NOT_ACTIVE = "d.state <> 'active'"
_CAN_CONNECT = "d.expires_at IS NOT NULL AND d.state NOT IN ('revoked', 'retired')"

_DEVICES = f"SELECT {mapping.columns(mapping.DEVICE_COLUMNS, 'd')} FROM "  # noqa: S608  our own constants
EXPIRED = f"""
    SELECT {mapping.columns(mapping.CREDENTIAL_COLUMNS)} FROM credential
    WHERE not_after < ? AND (not_after, fingerprint) > (?, ?) ORDER BY not_after, fingerprint LIMIT ?"""  # noqa: S608
_WEEK = 7 * 86_400 * 1_000_000  # microseconds
_MONDAY = 3 * 86_400 * 1_000_000  # 1970 began on a Thursday: three days into its week
EXPIRIES = f"""
    SELECT (d.expires_at + {_MONDAY}) / {_WEEK} AS week, count(*) FROM device d
    WHERE {_CAN_CONNECT} AND d.expires_at < ? GROUP BY week ORDER BY week"""  # noqa: S608
RENEWALS = """
    SELECT count(*), count(CASE WHEN latest >= ?2 THEN 1 END)
    FROM (
        SELECT (
            SELECT max(c.issued_at) FROM credential c
            WHERE c.holder = d.id AND c.kind = 'device' AND c.state IN ('issued', 'active')
        ) AS latest
        FROM device d WHERE d.model = ?1 AND d.state IN ('registered', 'active')
    ) held
    WHERE latest IS NOT NULL"""
_FIRST_MONDAY = datetime(1970, 1, 1, tzinfo=UTC) - timedelta(days=3)


def bounded(limit: int) -> int:
    return max(0, min(limit, LIST_MAX))


def devices(db: sqlite3.Connection, where: DeviceFilter, after: Place, limit: int) -> list[Device]:
    source, terms, parameters, order = _meant(where, after)
    sql = f"{_DEVICES}{source} WHERE {' AND '.join(terms)} ORDER BY {order} LIMIT {bounded(limit)}"
    return [mapping.device_of(row) for row in db.execute(sql, parameters)]


def count_devices(db: sqlite3.Connection, where: DeviceFilter) -> int:
    source, terms, parameters, _ = _meant(where, Place())
    sql = f"SELECT count(*) FROM {source} WHERE {' AND '.join(terms)}"  # noqa: S608
    count: int = db.execute(sql, parameters).fetchone()[0]
    return count


def _meant(where: DeviceFilter, after: Place) -> tuple[str, list[str], list[Any], str]:
    """FROM, the terms of WHERE, their parameters and the order: it walks the index that leaves least to look at."""
    tags = [*(("", where.group),) * (where.group is not None), *where.tags]
    if where.expires_before is not None:
        source, order = "device d", "d.expires_at, d.id"
        since = mapping.micros(after.expires_at) if after.expires_at is not None else 0
        terms = [_CAN_CONNECT, "(d.expires_at, d.id) > (?, ?)", "d.expires_at < ?"]
        parameters: list[Any] = [since, after.id, mapping.micros(where.expires_before)]
    elif tags:
        (key, value), *tags = tags
        source, order = "device_tag t JOIN device d ON d.id = t.device_id", "t.device_id"
        terms, parameters = ["t.key = ?", "t.value = ?", "t.device_id > ?"], [key, value, after.id]
    else:
        source, order, terms, parameters = "device d", "d.id", ["d.id > ?"], [after.id]
    for key, value in tags:
        terms.append("EXISTS (SELECT 1 FROM device_tag x WHERE x.key = ? AND x.value = ? AND x.device_id = d.id)")
        parameters += [key, value]
    if where.model is not None:
        terms.append("d.model = ?")
        parameters.append(where.model)
    if where.state is not None:
        terms.append("d.state = ?" if where.state is DeviceState.ACTIVE else f"d.state = ? AND {_NOT_ACTIVE}")
        parameters.append(where.state.value)
    return source, terms, parameters, order


def count_renewals(db: sqlite3.Connection, model: str, since: datetime) -> tuple[int, int]:
    devices, renewed = db.execute(RENEWALS, (model, mapping.micros(since))).fetchone()
    return devices, renewed


def expired_credentials(
    db: sqlite3.Connection, before: datetime, limit: int, after: Credential | None
) -> list[Credential]:
    place = (mapping.micros(after.not_after), after.fingerprint) if after is not None else (0, b"")
    found = db.execute(EXPIRED, (mapping.micros(before), *place, bounded(limit)))
    return [mapping.credential_of(row) for row in found]


def expiries(db: sqlite3.Connection, until: datetime) -> list[tuple[datetime, int]]:
    found = db.execute(EXPIRIES, (mapping.micros(until),))
    return [(_FIRST_MONDAY + timedelta(weeks=week), count) for week, count in found]
