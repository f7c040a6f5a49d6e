"""Merkle trees against RFC 9162's own definitions, written out plainly here."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.domain.merkle import (
    EMPTY,
    EMPTY_ROOT,
    SIZE_MAX,
    Frontier,
    inclusion_path,
    leaf_hash,
    node_hash,
    root_from_path,
)

LEAVES = [leaf_hash(n.to_bytes(2)) for n in range(140)]


def tree_hash(leaves: list[bytes]) -> bytes:
    """RFC 9162, 2.1.1: MTH."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return node_hash(tree_hash(leaves[:k]), tree_hash(leaves[k:]))


def subtree(level: int, index: int) -> bytes:
    return tree_hash(LEAVES[index << level : (index + 1) << level])


def test_known_roots() -> None:
    """Of the tree that certificate transparency's own tests use."""
    data = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    leaves = [leaf_hash(bytes.fromhex(text)) for text in data]
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert EMPTY.appended(leaves[:1]).root().hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert EMPTY.appended(leaves).root().hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@pytest.mark.parametrize("size", range(140))
def test_every_leaf_of_every_size(size: int) -> None:
    root = tree_hash(LEAVES[:size])
    assert EMPTY.appended(LEAVES[:size]).root() == root
    for index in range(size):
        path = inclusion_path(index, size, subtree)
        assert root_from_path(LEAVES[index], index, size, path) == root


@given(st.lists(st.integers(0, 40), max_size=6))
def test_in_any_portions(portions: list[int]) -> None:
    tree, at = EMPTY, 0
    for portion in portions:
        tree = tree.appended(LEAVES[at % 100 : at % 100 + portion])
        at += portion
        assert tree == Frontier.unpacked(tree.size, tree.packed())
    assert tree.size == sum(portions)


def test_every_inner_node_is_told_once() -> None:
    told: list[tuple[int, int, bytes]] = []
    tree = EMPTY.appended(LEAVES[:37], lambda *node: told.append(node))
    tree.appended(LEAVES[37:], lambda *node: told.append(node))
    wanted = [(level, index, subtree(level, index)) for level in range(1, 8) for index in range(len(LEAVES) >> level)]
    assert sorted(told) == wanted


def test_a_wrong_proof_gives_another_root_or_none() -> None:
    size, index = 100, 37
    root = tree_hash(LEAVES[:size])
    path = inclusion_path(index, size, subtree)
    assert root_from_path(LEAVES[38], index, size, path) != root
    assert root_from_path(LEAVES[index], index + 1, size, path) != root
    for at in range(len(path)):
        wrong = (*path[:at], bytes(32), *path[at + 1 :])
        assert root_from_path(LEAVES[index], index, size, wrong) != root
    for cut in (path[:-1], (*path, bytes(32))):
        with pytest.raises(ValueError, match="path is"):
            root_from_path(LEAVES[index], index, size, cut)
    for bad in (-1, size, size + 1):
        with pytest.raises(ValueError, match="no such leaf"):
            root_from_path(LEAVES[index], bad, size, path)
        with pytest.raises(ValueError, match="no such leaf"):
            inclusion_path(bad, size, subtree)


@pytest.mark.parametrize(("size", "packed"), [(1, b""), (0, bytes(32)), (3, bytes(32)), (1, bytes(31)), (-1, b"")])
def test_a_frontier_that_cannot_be(size: int, packed: bytes) -> None:
    with pytest.raises(ValueError, match="hash"):
        Frontier.unpacked(size, packed)


def test_the_largest_tree_has_paths_and_one_larger_has_none() -> None:
    """No tree is that large: every subtree of it has one made-up root."""
    root = bytes(32)
    path = inclusion_path(SIZE_MAX - 1, SIZE_MAX, lambda level, at: root)
    assert len(path) == 62
    assert len(root_from_path(root, SIZE_MAX - 1, SIZE_MAX, path)) == 32
    assert Frontier(SIZE_MAX, (root,)).size == SIZE_MAX
    with pytest.raises(ValueError, match="no such leaf"):
        inclusion_path(0, SIZE_MAX + 1, lambda level, at: root)
    with pytest.raises(ValueError, match="no such leaf"):
        root_from_path(root, 0, SIZE_MAX + 1, path)
    for size, hashes in ((SIZE_MAX * 2, (root,)), (-1, (root,)), (1, (root[:31],)), (1, (root + b"x",))):
        with pytest.raises(ValueError):
            Frontier(size, hashes)
    with pytest.raises(ValueError, match="32 bytes"):
        EMPTY.appended([root[:31]])
