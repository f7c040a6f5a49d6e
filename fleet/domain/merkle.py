"""Merkle trees (RFC 9162, 2.1): leaves are appended, and an audit path proves the inclusion of one.

    frontier = EMPTY.appended(leaf_hashes)      # the whole tree, as its few largest perfect subtrees
    frontier.root()
    path = inclusion_path(index, size, subtree)  # the audit path for `verify_inclusion`

Everything here is arithmetic on 32-byte SHA-256 values.
"""

import hashlib
from collections.abc import Callable, Iterable

from msgspec import Struct

HASH_SIZE = 32
SIZE_MAX = 1 << 62  # leaves; a path then has at most 62 hashes
PATH_MAX = 62

EMPTY_ROOT = hashlib.sha256(b"").digest()
"""RFC 9162, 2.1.1: the hash of an empty tree."""


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf with `data`. RFC 9162, 2.1.1: the prefix 0x00 distinguishes leaves from nodes."""
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return hashlib.sha256(b"\1" + left + right).digest()


class Frontier(Struct, frozen=True):
    """A tree of `size` leaves, as the roots of its perfect subtrees, largest first: one for each 1 in `size`."""

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.size <= SIZE_MAX or len(self.hashes) != self.size.bit_count():
            raise ValueError("A frontier holds one hash for each perfect subtree.")
        if any(len(each) != HASH_SIZE for each in self.hashes):
            raise ValueError(f"A hash has {HASH_SIZE} bytes.")

    def appended(self, leaves: Iterable[bytes], whole: "Whole | None" = None) -> "Frontier":
        """The tree with these leaf hashes appended. `whole` is called for each inner node completed."""
        size, stack = self.size, list(self.hashes)
        for leaf in leaves:
            node, level = leaf, 0
            while size >> level & 1:
                node = node_hash(stack.pop(), node)
                level += 1
                if whole is not None:
                    whole(level, size >> level, node)
            stack.append(node)
            size += 1
        return Frontier(size, tuple(stack))

    def root(self) -> bytes:
        """The root hash of the whole tree (RFC 9162, 2.1.1)."""
        if not self.hashes:
            return EMPTY_ROOT
        *rest, node = self.hashes
        for left in reversed(rest):
            node = node_hash(left, node)
        return node

    def packed(self) -> bytes:
        """The hashes concatenated; `unpacked` reads them."""
        return b"".join(self.hashes)

    @classmethod
    def unpacked(cls, size: int, packed: bytes) -> "Frontier":
        """Raises: ValueError: the bytes are not the frontier of a tree of `size` leaves."""
        if len(packed) % HASH_SIZE:
            raise ValueError(f"A hash has {HASH_SIZE} bytes.")
        return cls(size, tuple(packed[at : at + HASH_SIZE] for at in range(0, len(packed), HASH_SIZE)))


EMPTY = Frontier()

Whole = Callable[[int, int, bytes], None]
"""Called with (level, index, hash) of a completed perfect subtree."""

Subtree = Callable[[int, int], bytes]
"""(level, index) -> hash of the perfect subtree over leaves index * 2**level up to (index + 1) * 2**level."""


def _split(size: int) -> int:
    """The largest power of two smaller than `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def range_root(start: int, end: int, subtree: Subtree) -> bytes:
    """The root over leaves `start` up to `end`, where `start` is a multiple of a power of two that covers the range."""
    width = end - start
    if width & (width - 1) == 0:
        level = width.bit_length() - 1
        return subtree(level, start >> level)
    middle = start + _split(width)
    return node_hash(range_root(start, middle, subtree), range_root(middle, end, subtree))


def inclusion_path(index: int, size: int, subtree: Subtree) -> tuple[bytes, ...]:
    """The audit path of leaf `index` in a tree of `size` leaves (RFC 9162, 2.1.3.1), leaf first.

    Raises: ValueError: there is no such leaf.
    """
    if not 0 <= index < size <= SIZE_MAX:
        raise ValueError("There is no such leaf in the tree.")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(range_root(middle, end, subtree))
            end = middle
        else:
            path.append(range_root(start, middle, subtree))
            start = middle
    return tuple(reversed(path))


def root_from_path(leaf: bytes, index: int, size: int, path: Iterable[bytes]) -> bytes:
    """The root of the tree of `size` leaves with `leaf` at `index`, computed by `path` (RFC 9162, 2.1.3.2).

    Raises: ValueError: the path is too short or too long for such a tree.
    """
    if not 0 <= index < size <= SIZE_MAX:
        raise ValueError("There is no such leaf in the tree.")
    position, last, node = index, size - 1, leaf
    for each in path:
        if last == 0:
            raise ValueError("The path is longer than the tree is high.")
        if position & 1 or position == last:
            node = node_hash(each, node)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            node = node_hash(node, each)
        position >>= 1
        last >>= 1
    if last != 0:
        raise ValueError("The path is shorter than the tree is high.")
    return node
