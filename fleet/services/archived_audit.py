"""Archived audit rows: each with its leaf, each block of 256 with its hash and its audit path to a head.

With the file and a known head, or the key that signed it, every row can be verified without the registry.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from fleet.domain.audit_log import NODE_LEVELS, TreeHead, sound_leaves
from fleet.domain.audit_proof import ENTRY_TEXTS, head_of, head_value
from fleet.domain.changes import AuditEntry, AuditRow
from fleet.domain.errors import Invalid, Unavailable
from fleet.domain.merkle import EMPTY, inclusion_path, node_hash, root_from_path
from fleet.domain.ports import Registry
from fleet.storage.journals.archive import Line, read_lines

LEVEL = NODE_LEVELS[0]
BLOCK = 1 << LEVEL
HASHES_AT_ONCE = 10_000


def row_line(row: AuditRow) -> Line:
    """`row` as a line; `parse_row` reads it."""
    e = row.entry
    texts = {name: getattr(e, name) for name in ENTRY_TEXTS}
    return {"seq": row.seq, "at": e.at.isoformat(), **texts, "detail": e.detail, "leaf": row.leaf.hex()}


def parse_row(line: Line) -> AuditRow:
    """Raises: ValueError, KeyError, TypeError: malformed."""
    texts = {key: line[key] for key in ENTRY_TEXTS}
    if not all(isinstance(text, str) for text in texts.values()) or not isinstance(line["detail"], dict):
        raise TypeError("no entry")
    entry = AuditEntry(at=datetime.fromisoformat(line["at"]), detail=line["detail"], **texts)
    return AuditRow(int(line["seq"]), entry, bytes.fromhex(line["leaf"]))


async def proofs(registry: Registry, head: TreeHead, first: int, blocks: int) -> list[Line]:
    """A line for each of `blocks` blocks from number `first`: its hash, and its audit path to the root of `head`.

    Raises: Unavailable (`audit-hashes-missing`): the registry lacks some of the hashes.
    """
    nodes = await _hashes(registry, LEVEL, 0, head.size >> LEVEL)
    tail = await _hashes(registry, 0, head.size >> LEVEL << LEVEL, head.size % BLOCK)
    subtree = _subtrees(nodes, tail)
    return [
        {
            "block": block,
            "node": nodes[block].hex(),
            # Up to the block's height the path lies within it, and is recomputed from the rows.
            "path": [each.hex() for each in inclusion_path(block << LEVEL, head.size, subtree)[LEVEL:]],
        }
        for block in range(first, first + blocks)
    ]


def _subtrees(nodes: list[bytes], tail: list[bytes]) -> Callable[[int, int], bytes]:
    @cache
    def subtree(level: int, index: int) -> bytes:
        if level == LEVEL and index < len(nodes):
            return nodes[index]
        if level < LEVEL and (index << level) < len(nodes) << LEVEL:
            return bytes(32)  # inside a block: that part of the path is omitted
        if level == 0:
            return tail[index - (len(nodes) << LEVEL)]
        return node_hash(subtree(level - 1, 2 * index), subtree(level - 1, 2 * index + 1))

    return subtree


async def _hashes(registry: Registry, level: int, first: int, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        more = await registry.audit_hashes(level, first + len(found), min(HASHES_AT_ONCE, count - len(found)))
        if not more:
            message = f"The hash of subtree {first + len(found)} at level {level} is missing."
            raise Unavailable("audit-hashes-missing", message, "See: fleet audit verify")
        found += more
    return found


def head_line(head: TreeHead) -> Line:
    """`head` as the first line of an archive."""
    return {**head_value(head), "at": head.at.isoformat()}


def check_archived(path: Path, after: int) -> tuple[int, TreeHead]:
    """Verify every row of the archive file `path`, whose first follows row `after`, against its head.

    Returns the last row and the head, whose signature the caller verifies.

    Raises: Invalid: `archive-damaged`; `audit-changed`, `audit-removed` and the like. OSError.
    """
    lines = read_lines(path)
    try:
        head = head_of(next(lines)["head"])
        blocks: list[Line] = []
        leaves: list[bytes] = []
        rows = _rows(lines, blocks)
        for leaf in sound_leaves(rows, after=after):
            leaves.append(leaf)
        _fit(leaves, blocks, head, after)
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise Invalid("archive-damaged", f"{path} is damaged: {error}.") from error
    return after + len(leaves), head


def _rows(lines: Iterable[Line], blocks: list[Any]) -> Iterator[AuditRow]:
    for line in lines:
        if "block" in line:
            blocks.append(line)
        else:
            yield parse_row(line)


def _fit(leaves: list[bytes], blocks: list[Line], head: TreeHead, after: int) -> None:
    if after % BLOCK or not leaves or len(leaves) != len(blocks) * BLOCK:
        raise ValueError("it does not hold whole blocks, each with its proof")
    for number, line in enumerate(blocks):
        own = leaves[number * BLOCK : (number + 1) * BLOCK]
        index = after + number * BLOCK

        @cache
        def subtree(level: int, at: int, own: tuple[bytes, ...] = tuple(own)) -> bytes:
            if level == 0:
                return own[at]
            return node_hash(subtree(level - 1, 2 * at), subtree(level - 1, 2 * at + 1))

        node = EMPTY.appended(own).root()
        path = (*inclusion_path(0, BLOCK, subtree), *(bytes.fromhex(each) for each in line["path"]))
        root = root_from_path(own[0], index, head.size, path)
        if line["block"] != index >> LEVEL or bytes.fromhex(line["node"]) != node or root != head.root:
            message = (
                f"Rows {index + 1} to {index + BLOCK} are not those that the head of {head.size} rows was signed over."
            )
            raise Invalid("audit-rewritten", message)
