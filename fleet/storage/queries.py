"""Every SELECT whose text is the same for both engines, and what becomes of its rows."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from msgspec import Struct
from msgspec.structs import force_setattr

from fleet.domain.approval import RequestFilter
from fleet.domain.audit_log import Sealed
from fleet.domain.credential import Credential
from fleet.domain.device import DeviceFilter, DeviceState, Place
from fleet.domain.distrust import Distrust
from fleet.domain.errors import Conflict, Invalid
from fleet.domain.merkle import EMPTY, Frontier
from fleet.storage import mapping
from fleet.storage.mapping import Row, Table, micros, moment
from fleet.storage.statement import for_sqlite
from fleet.storage.waiting_requests import NOT_LISTED

T = TypeVar("T")

LIST_MAX = 10_000  # rows of one listing, whatever limit was requested
HELD_MAX = 16  # of a device's certificates in one state: an enrollment needs the newest of them


class Query(Struct, Generic[T], frozen=True, eq=False):
    """One SELECT, and what each of its rows becomes."""

    sql: str
    of: Callable[[Row], T]
    sqlite: str = ""
    """The same text for SQLite; follows from `sql`."""

    def __post_init__(self) -> None:
        force_setattr(self, "sqlite", for_sqlite(self.sql))


def _of(table: Table[T], rest: str) -> Query[T]:
    return Query(table.select(rest), table.of)


def first_cell(row: Row) -> Any:
    return row[0]


def whole(row: Row) -> Any:
    return tuple(row)


def bounded(limit: int) -> int:
    return max(0, min(limit, LIST_MAX))


MODEL = _of(mapping.MODEL, "WHERE name = $1")
MODELS = _of(mapping.MODEL, "ORDER BY name")
DEVICE = _of(mapping.DEVICE, "WHERE id = $1")
STATE_CHANGE = _of(mapping.STATE_CHANGE, "WHERE device_id = $1")
CREDENTIAL = _of(mapping.CREDENTIAL, "WHERE serial = $1")
CREDENTIALS = _of(mapping.CREDENTIAL, "WHERE holder = $1 ORDER BY seq")
CREDENTIALS_BY_EXPIRY = _of(
    mapping.CREDENTIAL,
    "WHERE not_after < $1 AND (not_after, fingerprint) > ($2, $3) ORDER BY not_after, fingerprint LIMIT $4",
)
TOKEN = _of(mapping.TOKEN, "WHERE id = $1")
TOKENS = _of(mapping.TOKEN, "ORDER BY created_at DESC, seq DESC")
OPEN_TOKENS = _of(
    mapping.TOKEN,
    "WHERE made_by = $1 AND revoked_at IS NULL AND expires_at > $2 AND uses < uses_max ORDER BY seq LIMIT $3",
)
OPEN_TOKEN_COUNTS: Query[tuple[str, int]] = Query(
    """
    SELECT made_by, count(*) FROM token
    WHERE revoked_at IS NULL AND expires_at > $1 AND uses < uses_max GROUP BY made_by""",
    whole,
)
STATION = _of(mapping.STATION, "WHERE name = $1")
STATIONS = _of(mapping.STATION, "ORDER BY name")
OPERATOR = _of(mapping.OPERATOR, "WHERE name = $1")
OPERATORS = _of(mapping.OPERATOR, "ORDER BY name")
ANSWER = _of(mapping.ANSWER, "WHERE actor = $1 AND key = $2")
LEASE = _of(mapping.LEASE, "WHERE name = $1")
CLAIM = _of(mapping.CLAIM, "WHERE name = $1")
CLAIMS = _of(mapping.CLAIM, "ORDER BY name")
ANCHORS = _of(mapping.ANCHOR, "ORDER BY name")
DISTRUSTS = _of(mapping.DISTRUST, "ORDER BY created_at, id")
DISTRUSTS_BY_ID = _of(mapping.DISTRUST, "ORDER BY id")
BINDINGS = _of(mapping.IDEVID, "WHERE key_sha256 = $1 OR device_id = $2 ORDER BY device_id")
REQUEST = _of(mapping.REQUEST, "WHERE id = $1")
PENDING = Query(
    f"""
    SELECT count(*), count(*) FILTER (WHERE model = $2 AND {NOT_LISTED}),
        count(*) FILTER (WHERE network = $3 AND {NOT_LISTED})
    FROM approval_request WHERE state = 'pending' AND expires_at > $1""",
    whole,
)
RENEWALS = Query(
    """
    SELECT count(*), count(CASE WHEN latest >= $2 THEN 1 END)
    FROM (
        SELECT (
            SELECT max(c.issued_at) FROM credential c
            WHERE c.holder = d.id AND c.kind = 'device' AND c.state IN ('issued', 'active')
        ) AS latest
        FROM device d WHERE d.model = $1 AND d.state IN ('registered', 'active')
    ) held
    WHERE latest IS NOT NULL""",
    whole,
)

AUDIT = Query(mapping.AUDIT.select("WHERE seq > $1 ORDER BY seq LIMIT $2"), mapping.audit_of)
LAST_AUDIT = Query("SELECT coalesce(max(seq), 0) FROM audit", first_cell)
LEAVES = Query("SELECT seq - 1, leaf FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2", whole)
NODES = Query("SELECT idx, hash FROM audit_node WHERE level = $1 AND idx >= $2 ORDER BY idx LIMIT $3", whole)
HEADS = Query(mapping.HEAD.select("WHERE size > $1 ORDER BY size LIMIT $2"), mapping.head_of)
LARGEST_HEAD = Query("SELECT size, signature FROM audit_head WHERE size = (SELECT max(size) FROM audit_head)", whole)


def must_be_newer(size: int, largest: Row | None) -> None:
    """Raises: Conflict (`sealed-already`): the row of LARGEST_HEAD shows a head of `size` rows or more."""
    if largest is not None and largest[0] >= size:
        raise Conflict("sealed-already", f"The audit is sealed up to row {largest[0]} already.")


EVENTS = _of(mapping.EVENT, "WHERE seq > $1 ORDER BY seq LIMIT $2")
FIRST_EVENT = Query("SELECT coalesce(min(seq), 0) FROM event", first_cell)
LAST_EVENT = Query("SELECT coalesce(max(seq), 0) FROM event", first_cell)


def _sealed(row: Row) -> Sealed | None:
    """With an empty frontier when the stored one is unreadable: its reader compares it with the head.

    Raises: Invalid (`audit-head-removed`): there was a head, and there is none.
    """
    *head, size, hashes = row
    if head[0] is None:
        if size is not None:
            message = f"The audit is broken: a head of {size} rows was there, and there is none any more."
            raise Invalid("audit-head-removed", message)
        return None
    try:
        frontier = Frontier.unpacked(size, hashes)
    except (TypeError, ValueError):
        frontier = EMPTY
    return Sealed(mapping.head_of(tuple(head)), frontier)


# One statement, as a head and its frontier must be of one moment.
LAST_SEALED = Query(
    f"""
    SELECT {mapping.HEAD.listed("h")}, f.size, f.hashes
    FROM (SELECT 1 AS one) AS here
    LEFT JOIN audit_head h ON h.size = (SELECT max(size) FROM audit_head)
    LEFT JOIN audit_frontier f ON f.one = here.one""",
    _sealed,
)

DEVICE_AND_MODEL = f"{mapping.DEVICE.listed('d')}, {mapping.MODEL.listed('m')}"
"""For an engine's own statements."""

# Each term is written as an index has it, so that the planner may use that index.
_NOT_ACTIVE = "d.state <> 'active'"
_CAN_CONNECT = "d.expires_at IS NOT NULL AND d.state NOT IN ('revoked', 'retired')"
_WEEK = 7 * 86_400 * 1_000_000  # microseconds
_MONDAY = 3 * 86_400 * 1_000_000  # 1970 began on a Thursday: three days into its week
_FIRST_MONDAY = datetime(1970, 1, 1, tzinfo=UTC) - timedelta(days=3)
EXPIRIES = Query(
    f"""
    SELECT (d.expires_at + {_MONDAY}) / {_WEEK} AS week, count(*) FROM device d
    WHERE {_CAN_CONNECT} AND d.expires_at < $1 GROUP BY week ORDER BY week""",
    lambda row: (_FIRST_MONDAY + timedelta(weeks=row[0]), int(row[1])),
)


class Parameters(list[Any]):
    """Parameters of a query that is put together term by term."""

    def mark(self, value: Any) -> str:
        """The placeholder of `value`."""
        self.append(value)
        return f"${len(self)}"


def list_devices(where: DeviceFilter, after: Place, limit: int) -> tuple[Query[Any], list[Any]]:
    """The query that lists devices, and its parameters."""
    source, order, parameters = _filtered(where, after)
    sql = f"SELECT {mapping.DEVICE.listed('d')} FROM {source} ORDER BY {order} LIMIT {bounded(limit)}"
    return Query(sql, mapping.DEVICE.of), parameters


def count_devices(where: DeviceFilter) -> tuple[Query[int], list[Any]]:
    """The query that counts devices, and its parameters."""
    source, _, parameters = _filtered(where, Place())
    return Query(f"SELECT count(*) FROM {source}", first_cell), parameters


def _filtered(where: DeviceFilter, after: Place) -> tuple[str, str, list[Any]]:
    """FROM with WHERE, the order, and the parameters: the most selective index is scanned."""
    if where.kind is not None:
        raise ValueError("A filter by kind is one by its models.")  # left out, it would select more
    parameters = Parameters()
    mark = parameters.mark
    tags = [*(("", where.group),) * (where.group is not None), *where.tags]
    if where.expires_before is not None:
        source, order = "device d", "d.expires_at, d.id"
        since = micros(after.expires_at) if after.expires_at is not None else 0
        position = f"(d.expires_at, d.id) > ({mark(since)}, {mark(after.id)})"
        terms = [_CAN_CONNECT, position, f"d.expires_at < {mark(micros(where.expires_before))}"]
    elif tags:
        (key, value), *tags = tags
        source, order = "device_tag t JOIN device d ON d.id = t.device_id", "t.device_id"
        terms = [f"t.key = {mark(key)}", f"t.value = {mark(value)}", f"t.device_id > {mark(after.id)}"]
    else:
        source, order, terms = "device d", "d.id", [f"d.id > {mark(after.id)}"]
    for key, value in tags:
        tag = f"x.key = {mark(key)} AND x.value = {mark(value)}"
        terms.append(f"EXISTS (SELECT 1 FROM device_tag x WHERE {tag} AND x.device_id = d.id)")
    if where.model is not None:
        terms.append(f"d.model = {mark(where.model)}")
    if where.state is not None:
        term = f"d.state = {mark(where.state.value)}"
        terms.append(term if where.state is DeviceState.ACTIVE else f"{term} AND {_NOT_ACTIVE}")
    return f"{source} WHERE {' AND '.join(terms)}", order, parameters


def count_distrusted(rule: Distrust) -> tuple[Query[tuple[str, int]], list[Any]]:
    """The query that counts the devices under a rule by model, and its parameters."""
    source, parameters = _distrusted(rule)
    sql = f"SELECT d.model, count(*) FROM {source} GROUP BY d.model ORDER BY d.model"
    return Query(sql, lambda row: (row[0], int(row[1]))), parameters


def list_distrusted(rule: Distrust, limit: int) -> tuple[Query[str], list[Any]]:
    """The query that lists the first devices under a rule, and its parameters."""
    source, parameters = _distrusted(rule)
    return Query(f"SELECT d.id FROM {source} ORDER BY d.id LIMIT {bounded(limit)}", first_cell), parameters


def count_distrusted_certificates(rule: Distrust, now: datetime) -> tuple[Query[int], list[Any]]:
    """The query that counts a rule's certificates, as `list_distrusted_certificates`, and its parameters."""
    source, parameters = _certificates(rule, now)
    return Query(f"SELECT count(*) FROM {source}", first_cell), parameters


def list_distrusted_certificates(rule: Distrust, now: datetime, limit: int) -> tuple[Query[Credential], list[Any]]:
    """The query that lists the first certificates under a rule that are not expired or revoked, and its parameters."""
    source, parameters = _certificates(rule, now)
    sql = f"SELECT {mapping.CREDENTIAL.listed('c')} FROM {source} ORDER BY c.seq LIMIT {bounded(limit)}"
    return Query(sql, mapping.CREDENTIAL.of), parameters


def _certificates(rule: Distrust, now: datetime) -> tuple[str, list[Any]]:
    parameters = Parameters()
    terms = ["c.kind = 'device'", "c.state <> 'revoked'", f"c.not_after > {parameters.mark(micros(now))}"]
    terms += _covered(rule, parameters.mark)
    return f"device d JOIN credential c ON c.holder = d.id WHERE {' AND '.join(terms)}", parameters


def _distrusted(rule: Distrust) -> tuple[str, list[Any]]:
    """FROM with WHERE, of the devices in service whose newest certificate it covers, and the parameters."""
    parameters = Parameters()
    usable = "kind = 'device' AND {0}.state IN ('issued', 'active') AND {0}.holder = d.id"
    terms = [
        "d.state IN ('registered', 'active')",
        f"c.{usable.format('c')}",
        f"c.seq = (SELECT max(n.seq) FROM credential n WHERE n.{usable.format('n')})",
        *_covered(rule, parameters.mark),
    ]
    return f"device d JOIN credential c ON c.holder = d.id WHERE {' AND '.join(terms)}", parameters


def usable_until(
    device_ids: Sequence[str], rules: Iterable[Distrust], now: datetime
) -> tuple[Query[tuple[str, datetime]], list[Any]]:
    """The query of when each device's last usable certificate ends that no rule refuses, and its parameters."""
    parameters = Parameters()
    named = ", ".join(parameters.mark(each) for each in device_ids)
    terms = [
        f"d.id IN ({named})",
        "c.kind = 'device' AND c.state IN ('issued', 'active')",
        f"c.not_after > {parameters.mark(micros(now))}",
        *(f"NOT ({' AND '.join(_covered(rule, parameters.mark))})" for rule in rules if rule.refuses),
    ]
    sql = (
        f"SELECT d.id, max(c.not_after) FROM device d JOIN credential c ON c.holder = d.id WHERE {' AND '.join(terms)}"
    )
    return Query(f"{sql} GROUP BY d.id", lambda row: (row[0], moment(row[1]))), parameters


def _covered(rule: Distrust, mark: Callable[[Any], str]) -> list[str]:
    """Terms of WHERE, of a device d and its credential c, as Distrust.covers has it."""
    terms = [f"c.issued_at < {mark(micros(rule.issued_before))}"]
    if rule.model:
        terms.append(f"d.model = {mark(rule.model)}")
    if rule.issued_from is not None:
        terms.append(f"c.issued_at >= {mark(micros(rule.issued_from))}")
    for octets in filter(None, (rule.issuer_mark, rule.key_mark)):
        terms.append(f"position({mark(octets)} IN c.der) > 0")
    return terms


def list_requests(where: RequestFilter, now: datetime, after: str, limit: int) -> tuple[Query[Any], list[Any]]:
    """The query that lists approval requests, and its parameters."""
    parameters = Parameters()
    terms = [f"id > {parameters.mark(after)}", f"expires_at > {parameters.mark(micros(now))}"]
    state = where.state.value if where.state is not None else None
    for name, value in (("state", state), ("model", where.model), ("device_id", where.device_id)):
        if value is not None:
            terms.append(f"{name} = {parameters.mark(value)}")
    rest = f"WHERE {' AND '.join(terms)} ORDER BY id LIMIT {bounded(limit)}"
    return _of(mapping.REQUEST, rest), parameters


def unbroken(found: list[Row], first: int) -> list[bytes]:
    """The hashes of (index, hash) from `first` on, up to the first gap."""
    return [hash_ for expected, (index, hash_) in enumerate(found, first) if index == expected]
