"""The audit, its heads and hashes, and the events, as SQL for PostgreSQL."""

from collections.abc import Sequence
from typing import Any

from fleet.domain.audit_log import AuditNode, Sealed
from fleet.domain.errors import Conflict, Invalid
from fleet.domain.merkle import EMPTY, Frontier
from fleet.storage import mapping
from fleet.storage.postgres.session import Session

SEAL_LOCK = "1179399217, 3"  # "FLT1": held by whoever adds a head


def _select(table: str, names: tuple[str, ...], rest: str) -> str:
    return f"SELECT {mapping.columns(names)} FROM {table} {rest}"  # noqa: S608  our own constants


AUDIT = _select("audit", mapping.AUDIT_COLUMNS, "WHERE seq > $1 ORDER BY seq LIMIT $2")
LAST_AUDIT = "SELECT coalesce(max(seq), 0) FROM audit"
LEAVES = "SELECT seq - 1, leaf FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2"
NODES = "SELECT idx, hash FROM audit_node WHERE level = $1 AND idx >= $2 ORDER BY idx LIMIT $3"
HEADS = _select("audit_head", mapping.HEAD_COLUMNS, "WHERE size > $1 ORDER BY size LIMIT $2")
# One statement, as a head and its frontier must be of one moment.
LAST_SEALED = f"""
    SELECT {mapping.columns(mapping.HEAD_COLUMNS, "h")}, f.size, f.hashes
    FROM (VALUES (1)) AS here (one)
    LEFT JOIN (SELECT * FROM audit_head ORDER BY size DESC LIMIT 1) AS h ON true
    LEFT JOIN audit_frontier f ON f.one = 1"""  # noqa: S608  our own constants
LARGEST_HEAD = "SELECT size, signature FROM audit_head ORDER BY size DESC LIMIT 1"
EVENTS = _select("event", mapping.EVENT_COLUMNS, "WHERE seq > $1 ORDER BY seq LIMIT $2")
FIRST_EVENT = "SELECT coalesce(min(seq), 0) FROM event"
LAST_EVENT = "SELECT coalesce(max(seq), 0) FROM event"

ADD_HEAD = f"INSERT INTO audit_head ({mapping.columns(mapping.HEAD_COLUMNS)}) VALUES ($1, $2, $3, $4, $5)"  # noqa: S608
ADD_NODES = """
    INSERT INTO audit_node (level, idx, hash) SELECT * FROM unnest($1::int[], $2::bigint[], $3::bytea[])
    ON CONFLICT DO NOTHING"""  # a smaller head may have made them whole meanwhile
SET_FRONTIER = """
    INSERT INTO audit_frontier (one, size, hashes) VALUES (1, $1, $2)
    ON CONFLICT (one) DO UPDATE SET size = excluded.size, hashes = excluded.hashes"""


def sealed_of(row: Any) -> Sealed | None:
    """What the row of LAST_SEALED says; with an empty frontier when what is kept of it is none: whoever goes on from it
    compares it with the head.

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


def unbroken(found: Sequence[Any], first: int) -> list[bytes]:
    """The hashes of (index, hash) from `first` on: what stands behind a gap is not returned."""
    return [hash_ for expected, (index, hash_) in enumerate(found, first) if index == expected]


async def add_head(session: Session, sealed: Sealed, nodes: Sequence[AuditNode]) -> None:
    """Keep a new head, its frontier and the nodes that it has made whole, in one transaction.

    Raises: Conflict (`sealed-already`): nothing happened. And what the driver raises.
    """
    head = sealed.head
    async with session.transaction():
        await session.execute(f"SELECT pg_advisory_xact_lock({SEAL_LOCK})")
        largest = await session.fetchrow(LARGEST_HEAD)
        if largest is not None and largest["size"] >= head.size:
            raise Conflict("sealed-already", f"The audit is sealed up to row {largest['size']} already.")
        await session.execute(ADD_HEAD, *mapping.head_row(head))
        levels, indices, hashes = ([getattr(n, name) for n in nodes] for name in ("level", "index", "hash"))
        await session.execute(ADD_NODES, levels, indices, hashes)
        await session.execute(SET_FRONTIER, sealed.frontier.size, sealed.frontier.packed())


async def has_head(session: Session, sealed: Sealed) -> bool:
    """Whether this very head is the largest: asked when a session was lost while it was being added."""
    async with session.transaction():
        await session.execute(f"SELECT pg_advisory_xact_lock({SEAL_LOCK})")  # waits for that session's own end
        largest = await session.fetchrow(LARGEST_HEAD)
    return largest is not None and tuple(largest) == (sealed.head.size, sealed.head.signature)
