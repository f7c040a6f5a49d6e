"""Audit sealing: signs a new tree head over the rows added since the last one.

Any process may seal at any time; of concurrent ones one succeeds and the others retry.
"""

import asyncio
from datetime import datetime

from fleet.domain.audit_log import AuditNode, Sealed, TreeHead, grown, head_data
from fleet.domain.errors import Conflict, Invalid, Unavailable
from fleet.domain.merkle import EMPTY, HASH_SIZE, Frontier
from fleet.domain.ports import HeadSigner, Registry
from fleet.services.audit_tree import tree_at

PAGE_ROWS = 1_024  # hashed at once: blocks the event loop for about 2 ms
HEAD_ROWS_MAX = 65_536  # under one head: a large backlog becomes durable step by step
LOOKS_MAX = 16  # a retry means that another process has sealed meanwhile


async def seal(registry: Registry, signer: HeadSigner, now: datetime) -> TreeHead | None:
    """Seal every present row; our newest head, or None if there was nothing to seal.

    Raises: Invalid: rows or hashes have been tampered with, and no head is signed over them. Unavailable.
    """
    newest = await registry.last_audit()
    ours: TreeHead | None = None
    conflicts = 0
    while True:
        last = await registry.last_sealed()
        tree = await _sound_tree(registry, last) if last is not None else EMPTY
        if tree.size >= newest:
            return ours
        tree, nodes = await _grown_to(registry, tree, min(newest, tree.size + HEAD_ROWS_MAX))
        head = signed_head(tree, signer, now)
        try:
            await registry.seal(Sealed(head, tree), nodes)
        except Conflict:
            conflicts += 1
            if conflicts == LOOKS_MAX:
                message = f"Others keep sealing the audit; the rows up to {newest} may not all be sealed."
                raise Unavailable("busy", message, "Try again.") from None
        else:
            ours = head


def signed_head(tree: Frontier, signer: HeadSigner, now: datetime) -> TreeHead:
    """The head of `tree` as of `now`, truncated to milliseconds."""
    at = now.replace(microsecond=now.microsecond // 1000 * 1000)
    root = tree.root()
    return TreeHead(tree.size, root, at, signer.key_id, signer.sign(head_data(tree.size, root, at)))


async def _sound_tree(registry: Registry, last: Sealed) -> Frontier:
    """The tree of `last`: the stored frontier or, if that does not match, computed from the hashes.

    A head is stored in one transaction with its frontier. A frontier ahead of it means that heads were removed, which
    continuing would conceal.
    """
    if last.frontier.size > last.head.size:
        message = f"A head of {last.frontier.size} rows was there and is gone; nothing more is sealed."
        raise Invalid("audit-head-removed", message, "Find out who was at the registry, and put a backup back.")
    if last.frontier.size == last.head.size and last.frontier.root() == last.head.root:
        return last.frontier
    rebuilt = await tree_at(registry, last.head.size)
    if rebuilt.root() != last.head.root:
        message = f"The audit's hashes do not give the root that the head of {last.head.size} rows was signed over."
        raise Invalid("audit-frontier", message, "See: fleet audit verify")
    return rebuilt


async def _grown_to(registry: Registry, tree: Frontier, size: int) -> tuple[Frontier, tuple[AuditNode, ...]]:
    nodes: tuple[AuditNode, ...] = ()
    while tree.size < size:
        leaves = await registry.audit_hashes(0, tree.size, min(PAGE_ROWS, size - tree.size))
        if not leaves or any(len(leaf) != HASH_SIZE for leaf in leaves):
            message = f"The audit is broken behind row {tree.size}; what follows is not sealed."
            raise Invalid("audit-removed", message, "See: fleet audit verify")
        tree, new = grown(tree, leaves)
        nodes += new
        await asyncio.sleep(0)  # yield to the event loop
    return tree, nodes
