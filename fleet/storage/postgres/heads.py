"""Stores signed heads of the audit's tree, one node at a time."""

from collections.abc import Sequence

from fleet.domain.audit_log import AuditNode, Sealed
from fleet.storage import mapping, queries, statements
from fleet.storage.postgres.session import Session

SEAL_LOCK = "1179399217, 3"  # "FLT1": held while a head is added

ADD_NODES = """
    INSERT INTO audit_node (level, idx, hash) SELECT * FROM unnest($1::int[], $2::bigint[], $3::bytea[])
    ON CONFLICT DO NOTHING"""  # a smaller head may have stored them already


async def add_head(session: Session, sealed: Sealed, nodes: Sequence[AuditNode]) -> None:
    """Store a new head, its frontier and the nodes that it completes, in one transaction.

    Raises: Conflict (`sealed-already`): nothing happened. And what the driver raises.
    """
    async with session.transaction():
        await session.execute(f"SELECT pg_advisory_xact_lock({SEAL_LOCK})")
        queries.must_be_newer(sealed.head.size, await session.fetchrow(queries.LARGEST_HEAD.sql))
        await session.execute(statements.ADD_HEAD.sql, *mapping.HEAD.row(sealed.head))
        levels, indices, hashes = ([getattr(n, name) for n in nodes] for name in ("level", "index", "hash"))
        await session.execute(ADD_NODES, levels, indices, hashes)
        await session.execute(statements.SET_FRONTIER.sql, sealed.frontier.size, sealed.frontier.packed())


async def has_head(session: Session, sealed: Sealed) -> bool:
    """Whether this very head is the largest: asked when a session was lost while it was being added."""
    async with session.transaction():
        await session.execute(f"SELECT pg_advisory_xact_lock({SEAL_LOCK})")  # waits until that session has ended
        largest = await session.fetchrow(queries.LARGEST_HEAD.sql)
    return largest is not None and tuple(largest) == (sealed.head.size, sealed.head.signature)
