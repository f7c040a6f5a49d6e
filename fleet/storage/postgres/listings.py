"""Listings as SQL for PostgreSQL: devices by any filter, what has expired, what will."""

from datetime import UTC, datetime, timedelta
from typing import Any

from fleet.domain.device import DeviceFilter, DeviceState, Place
from fleet.storage import mapping

LIST_MAX = 10_000  # rows of a listing at once, whatever was asked for

# Each term stands as an index has it, true as it is, so that the planner may use that index.
_NOT_ACTIVE = "d.state <> 'active'"
_CAN_CONNECT = "d.expires_at IS NOT NULL AND d.state NOT IN ('revoked', 'retired')"

_DEVICES = f"SELECT {mapping.columns(mapping.DEVICE_COLUMNS, 'd')} FROM "  # noqa: S608  our own constants
EXPIRED = f"""
    SELECT {mapping.columns(mapping.CREDENTIAL_COLUMNS)} FROM credential
    WHERE not_after < $1 AND (not_after, fingerprint) > ($2, $3) ORDER BY not_after, fingerprint LIMIT $4"""  # noqa: S608
_WEEK = 7 * 86_400 * 1_000_000  # microseconds
_MONDAY = 3 * 86_400 * 1_000_000  # 1970 began on a Thursday: three days into its week
EXPIRIES = f"""
    SELECT (d.expires_at + {_MONDAY}) / {_WEEK} AS week, count(*) FROM device d
    WHERE {_CAN_CONNECT} AND d.expires_at < $1 GROUP BY week ORDER BY week"""  # noqa: S608
RENEWALS = """
    SELECT count(*), count(CASE WHEN latest >= $2 THEN 1 END)
    FROM (
        SELECT (
            SELECT max(c.issued_at) FROM credential c
            WHERE c.holder = d.id AND c.kind = 'device' AND c.state IN ('issued', 'active')
        ) AS latest
        FROM device d WHERE d.model = $1 AND d.state IN ('registered', 'active')
    ) held
    WHERE latest IS NOT NULL"""
_FIRST_MONDAY = datetime(1970, 1, 1, tzinfo=UTC) - timedelta(days=3)


def bounded(limit: int) -> int:
    return max(0, min(limit, LIST_MAX))


def devices(where: DeviceFilter, after: Place, limit: int) -> tuple[str, list[Any]]:
    """The statement that lists devices, and its parameters."""
    source, terms, parameters, order = _meant(where, after)
    return f"{_DEVICES}{source} WHERE {' AND '.join(terms)} ORDER BY {order} LIMIT {bounded(limit)}", parameters


def count_devices(where: DeviceFilter) -> tuple[str, list[Any]]:
    """The statement that counts devices, and its parameters."""
    source, terms, parameters, _ = _meant(where, Place())
    return f"SELECT count(*) FROM {source} WHERE {' AND '.join(terms)}", parameters  # noqa: S608


def _meant(where: DeviceFilter, after: Place) -> tuple[str, list[str], list[Any], str]:
    """FROM, the terms of WHERE, their parameters and the order: it walks the index that leaves least to look at."""
    parameters: list[Any] = []

    def given(value: Any) -> str:
        parameters.append(value)
        return f"${len(parameters)}"

    tags = [*(("", where.group),) * (where.group is not None), *where.tags]
    if where.expires_before is not None:
        source, order = "device d", "d.expires_at, d.id"
        since = mapping.micros(after.expires_at) if after.expires_at is not None else 0
        behind = f"(d.expires_at, d.id) > ({given(since)}, {given(after.id)})"
        terms = [_CAN_CONNECT, behind, f"d.expires_at < {given(mapping.micros(where.expires_before))}"]
    elif tags:
        (key, value), *tags = tags
        source, order = "device_tag t JOIN device d ON d.id = t.device_id", "t.device_id"
        terms = [f"t.key = {given(key)}", f"t.value = {given(value)}", f"t.device_id > {given(after.id)}"]
    else:
        source, order, terms = "device d", "d.id", [f"d.id > {given(after.id)}"]
    for key, value in tags:
        tag = f"x.key = {given(key)} AND x.value = {given(value)}"
        terms.append(f"EXISTS (SELECT 1 FROM device_tag x WHERE {tag} AND x.device_id = d.id)")  # noqa: S608
    if where.model is not None:
        terms.append(f"d.model = {given(where.model)}")
    if where.state is not None:
        term = f"d.state = {given(where.state.value)}"
        terms.append(term if where.state is DeviceState.ACTIVE else f"{term} AND {_NOT_ACTIVE}")
    return source, terms, parameters, order


def monday(week: int) -> datetime:
    """When the week begins that EXPIRIES calls `week`."""
    return _FIRST_MONDAY + timedelta(weeks=week)
