"""The stored audit tree: any subtree, earlier tree or path, from a few hundred stored hashes.

Leaves are stored with their rows; nodes of NODE_LEVELS remain when the rows are archived.
"""

from fleet.domain.audit_log import NODE_LEVELS
from fleet.domain.errors import Invalid
from fleet.domain.merkle import EMPTY, HASH_SIZE, Frontier, inclusion_path
from fleet.domain.ports import AuditReader

_LEVELS = (0, *NODE_LEVELS)


async def subtree_hash(reader: AuditReader, level: int, index: int) -> bytes:
    """The hash over leaves index * 2**level up to (index + 1) * 2**level, from the next lower stored hashes.

    Raises: Invalid (`audit-hash-missing`): neither these leaves nor all nodes above them are stored.
    """
    if level in _LEVELS:
        stored = await _stored(reader, level, index, 1)
        if stored:
            return stored[0]
    below = max((each for each in _LEVELS if each < level), default=None)
    if below is None:
        raise Invalid("audit-hash-missing", f"The audit is broken: row {index + 1} is missing.")
    count = 1 << (level - below)
    first = index << (level - below)
    hashes = await _stored(reader, below, first, count)
    for missing in range(first + len(hashes), first + count):
        hashes.append(await subtree_hash(reader, below, missing))
    return EMPTY.appended(hashes).root()


async def _stored(reader: AuditReader, level: int, first: int, count: int) -> list[bytes]:
    hashes = await reader.audit_hashes(level, first, count)
    for index, hash_ in enumerate(hashes, first):
        if len(hash_) != HASH_SIZE:
            where = f"rows {(index << level) + 1} to {index + 1 << level}"
            raise Invalid("audit-changed", f"The audit is broken: a hash over {where} has been changed.")
    return hashes


async def tree_at(reader: AuditReader, size: int) -> Frontier:
    """The tree of the first `size` rows, stored or archived. Raises: Invalid (`audit-hash-missing`)."""
    hashes = []
    at = 0
    for level in range(size.bit_length() - 1, -1, -1):
        if size >> level & 1:
            hashes.append(await subtree_hash(reader, level, at >> level))
            at += 1 << level
    return Frontier(size, tuple(hashes))


async def path_of(reader: AuditReader, index: int, size: int) -> tuple[bytes, ...]:
    """The inclusion path of leaf `index` in the tree of the first `size` rows.

    Raises: Invalid (`audit-hash-missing`).
    """
    wanted: dict[tuple[int, int], bytes] = {}
    inclusion_path(index, size, lambda level, at: wanted.setdefault((level, at), bytes(HASH_SIZE)))  # collected
    for level, at in wanted:
        wanted[level, at] = await subtree_hash(reader, level, at)
    return inclusion_path(index, size, lambda level, at: wanted[level, at])
