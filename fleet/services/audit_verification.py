"""Audit verification: rows against leaves, leaves against signed heads, and the stored hashes.

    verified = await verify(reader, keys)                     # everything stored
    verified = await verify(reader, keys, since=remembered)   # only what follows a head verified before

Works on a live registry and on a copy: rows added during the run are left for the next one. The first mismatch is
raised, with the row or head named.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence

from msgspec import Struct, field

from fleet.ca.head_signer import HeadKey, check_head
from fleet.domain.audit_log import NODE_LEVELS, AuditNode, Sealed, TreeHead, grown, head_data, sound_leaves
from fleet.domain.changes import AuditRow
from fleet.domain.errors import Invalid, Unavailable
from fleet.domain.merkle import EMPTY, Frontier
from fleet.domain.ports import AuditReader
from fleet.services.audit_tree import tree_at

PAGE_ROWS = 4_096
BLOCK_ROWS = 1 << NODE_LEVELS[0]  # rows are archived in whole blocks

_BEFORE_ALL = -(1 << 62)  # no genuine row has such a number


class Noted(Struct, frozen=True):
    """The tree over the first `size` rows as recorded elsewhere, optionally with its signed heads."""

    size: int
    root: bytes
    heads: int | None = None
    """Number of signed heads up to `size`."""
    heads_digest: bytes = b""
    """Digest over these heads, from an earlier `verify`."""


class Verified(Struct, frozen=True):
    """Result of a successful verification."""

    rows: int
    """Number of the newest row; `root` covers all rows."""
    first_row: int
    """The first row read."""
    root: bytes
    """Root of the tree of all rows, sealed or not."""
    head: TreeHead | None
    """The newest signed head, if any."""
    heads: int
    """Number of signed heads verified."""
    archived: int
    """Rows up to this one are archived; their hashes are stored and part of `root`."""
    noted: Noted
    """The newest signed head, to record for the next run."""

    @property
    def sealed(self) -> int:
        return self.head.size if self.head is not None else 0


async def verify(
    reader: AuditReader,
    keys: Sequence[HeadKey] | None,
    *,
    since: Noted | None = None,
    noted: Noted | None = None,
    sealed_here: Noted | None = None,
) -> Verified:
    """Verify what is stored, or only what follows `since`; signatures against `keys`, or none if that is None.

    `noted` is verified along the way, and so is `sealed_here`, the home's note of how its audit began.

    Raises: Invalid: `audit-changed`, `audit-removed`, `audit-inserted`, `audit-moved` for rows; `audit-rewritten` for
    rows that do not yield the root of a head or of `noted`; `head-key`, `head-signature`, `audit-head-removed`
    for heads; `audit-node`, `audit-frontier`, `audit-hash-missing` for stored hashes. Unavailable: also when rows
    were archived during the run.
    """
    sealed = await reader.last_sealed()
    newest = await reader.last_audit()
    work = _Verification(reader, keys, sealed, newest, [noted] if noted is not None else [])
    await work.begin(since, sealed_here)
    await work.walk()
    await work.end()
    head = sealed.head if sealed is not None else None
    marks = work.heads
    return Verified(
        rows=newest,
        first_row=work.start + 1,
        root=work.tree.root(),
        head=head,
        heads=marks.checked,
        archived=work.archived,
        noted=Noted(head.size if head else 0, head.root if head else EMPTY.root(), marks.count, marks.digest),
    )


class _Heads(Struct):
    """The signed heads passed: their number, and a digest over all of them that reveals a removed one."""

    count: int = 0
    digest: bytes = bytes(32)
    checked: int = 0

    def add(self, head: TreeHead) -> None:
        self.count += 1
        self.checked += 1
        signed = head_data(head.size, head.root, head.at) + head.key_id + head.signature
        self.digest = hashlib.sha256(self.digest + signed).digest()


class _Verification(Struct):
    reader: AuditReader
    keys: Sequence[HeadKey] | None
    sealed: Sealed | None
    newest: int
    noted: list[Noted]
    """Records not reached yet."""
    start: int = 0
    archived: int = 0
    tree: Frontier = EMPTY
    good: int = 0
    """Size of the last matching head."""
    heads: _Heads = field(default_factory=_Heads)
    nodes: list[AuditNode] = field(default_factory=list)
    """Not compared with the stored ones yet."""

    @property
    def sealed_size(self) -> int:
        return self.sealed.head.size if self.sealed is not None else 0

    async def begin(self, since: Noted | None, sealed_here: Noted | None) -> None:
        """Determine the tree to start from."""
        if sealed_here is not None and self.newest < sealed_here.size:
            missing = _rows(self.newest, sealed_here.size)
            raise _broken("audit-removed", f"{missing} missing; they were sealed here.")
        if self.newest < self.sealed_size:
            message = f"{_rows(self.newest, self.sealed_size)} missing; a head of {self.sealed_size} rows was signed."
            raise _broken("audit-removed", message)
        first = await self.reader.audit(after=_BEFORE_ALL, limit=1)
        if first and first[0].seq < 1:
            raise _broken("audit-inserted", f"row {first[0].seq} is before row 1.")
        await self.reader.audit_heads(after=_BEFORE_ALL, limit=1)  # one of less than one row is refused as it is read
        self.archived = first[0].seq - 1 if first else 0
        if self.archived % BLOCK_ROWS or self.archived > self.sealed_size:
            raise _broken("audit-removed", f"{_rows(0, self.archived)} missing.")
        if sealed_here is not None:
            self.noted.append(sealed_here)
        if since is not None and since.size < self.archived:
            self.noted.append(since)  # not all rows after it are stored: its head must still exist
            since = None
        if since is not None:
            await self._begin_after(since)
        elif self.archived:
            await self._begin_behind_archived()
        for noted in [each for each in self.noted if each.size < self.start]:
            await self._look_back(noted)
        self._check_noted_root(self.tree.size, self.tree.root())
        if self.sealed is not None and self.sealed_size <= self.tree.size:
            self._check_root(self.sealed.head, await tree_at(self.reader, self.sealed_size))

    async def _begin_after(self, since: Noted) -> None:
        if since.size > self.newest:
            raise _broken("audit-removed", f"{_rows(self.newest, since.size)} missing, which were there before.")
        self.tree = await tree_at(self.reader, since.size)
        if self.tree.root() != since.root:
            raise _not_noted(since)
        self.start = self.good = since.size
        if since.heads is not None:
            self.heads.count, self.heads.digest = since.heads, since.heads_digest
            found = await self.reader.audit_heads(after=since.size - 1, limit=1)
            if since.heads and [head.size for head in found] != [since.size]:
                raise _broken("audit-head-removed", f"the head of {since.size} rows, verified before, is gone.")

    async def _begin_behind_archived(self) -> None:
        """Verify heads over archived rows: their signatures, and their roots where a block ends at them."""
        async for head in self._signed_heads(after=0, upto=self.archived):
            if head.size % BLOCK_ROWS == 0:
                self._check_root(head, await tree_at(self.reader, head.size))
            self.heads.add(head)
            self._check_noted_root(head.size, head.root)
        self.tree = await tree_at(self.reader, self.archived)
        self.start = self.good = self.archived

    async def _look_back(self, noted: Noted) -> None:
        """Verify `noted` over rows that are not read, by their stored hashes."""
        if noted.heads:
            raise _broken("audit-head-removed", f"the head of {noted.size} rows, verified before, is gone.")
        if noted.size < self.archived and noted.size % BLOCK_ROWS:
            message = (
                f"Rows up to {self.archived} are archived; what the first {noted.size} were is not known any more."
            )
            raise Invalid("audit-archived", message, "Verify against a later head, or the archive.")
        if (await tree_at(self.reader, noted.size)).root() != noted.root:
            raise _not_noted(noted)
        self.noted.remove(noted)

    async def _signed_heads(self, *, after: int, upto: int) -> AsyncIterator[TreeHead]:
        """The heads of sizes in between, with verified signatures."""
        while after < upto:
            page = await self.reader.audit_heads(after=after)
            for head in page:
                if head.size > upto:
                    return
                if self.keys is not None:
                    check_head(head, self.keys)
                yield head
                after = head.size
            if not page:
                return

    async def walk(self) -> None:
        """Verify every row from here on, and every head along the way."""
        heads = self._signed_heads(after=self.start, upto=self.sealed_size)
        head = await anext(heads, None)
        while self.tree.size < self.newest:
            leaves = list(sound_leaves(await self._page(), self.tree.size))
            while leaves:
                marks = (head, *self.noted, self.sealed.head if self.sealed is not None else None)
                stops = [each.size - self.tree.size for each in marks if each is not None]
                count = min([len(leaves), *(stop for stop in stops if stop > 0)])
                self.tree, nodes = grown(self.tree, leaves[:count])
                self.nodes += nodes
                leaves = leaves[count:]
                if head is not None and head.size == self.tree.size:
                    self._check_root(head, self.tree)
                    await self._check_nodes()
                    self.heads.add(head)
                    head = await anext(heads, None)
                if self.sealed is not None and self.tree.size == self.sealed_size:
                    self._check_root(self.sealed.head, self.tree)  # whether it is in the list or not
                self._check_noted_root(self.tree.size, self.tree.root())

    async def _page(self) -> list[AuditRow]:
        wanted = min(PAGE_ROWS, self.newest - self.tree.size)
        page = await self.reader.audit(after=self.tree.size, limit=wanted)
        if not page:
            raise _broken("audit-removed", f"{_rows(self.tree.size, self.newest)} missing.")
        if page[0].seq > self.tree.size + 1:
            first = (await self.reader.audit(limit=1))[0].seq
            if first == page[0].seq and first > self.archived + 1 and (first - 1) % BLOCK_ROWS == 0:
                message = f"Rows up to {first - 1} were archived while they were verified."
                raise Unavailable("archived-meanwhile", message, "Run it again.")
        return page

    async def _check_nodes(self) -> None:
        """Verify the nodes completed up to a head, once the head has confirmed the rows."""
        for node in self.nodes:
            if await self.reader.audit_hashes(node.level, node.index, 1) != [node.hash]:
                first, last = (node.index << node.level) + 1, (node.index + 1) << node.level
                raise _broken("audit-node", f"the node over rows {first} to {last} has been tampered with.")
        self.nodes.clear()

    def _check_root(self, head: TreeHead, tree: Frontier) -> None:
        if tree.root() != head.root:
            signed = f"what the head of {head.size} rows was signed over"
            raise _broken("audit-rewritten", f"{_rows(self.good, head.size)} not {signed}.")
        self.good = head.size

    def _check_noted_root(self, size: int, root: bytes) -> None:
        """Verify that the recorded root of the first `size` rows is `root`."""
        for noted in [each for each in self.noted if each.size == size]:
            if noted.root != root:
                raise _not_noted(noted)
            if noted.heads is not None and (noted.heads, noted.heads_digest) != (self.heads.count, self.heads.digest):
                now = f"there are {self.heads.count} heads up to row {noted.size}"
                raise _broken("audit-head-removed", f"{now}, and not the {noted.heads} that were verified before.")
            self.noted.remove(noted)

    async def end(self) -> None:
        """Verify the stored hashes."""
        for noted in self.noted:  # beyond the last row
            raise _not_noted(noted)
        if self.sealed is None:
            await self._no_stray_nodes(0)
            return
        head, frontier = self.sealed.head, self.sealed.frontier
        if self.keys is not None:
            check_head(head, self.keys)
        if head.size < frontier.size <= self.newest:
            raise _broken("audit-head-removed", f"a head of {frontier.size} rows was there and is gone.")
        if frontier.size != head.size or frontier.root() != head.root:
            raise _broken("audit-frontier", f"the frontier of the head of {head.size} rows has been tampered with.")
        await self._no_stray_nodes(head.size)

    async def _no_stray_nodes(self, size: int) -> None:
        for level in NODE_LEVELS:
            behind = size >> level
            stray = await self.reader.audit_hashes(level, behind, 1)
            again = await self.reader.last_sealed()
            if stray and (again.head.size if again is not None else 0) == size:
                message = f"there is a node over rows from {(behind << level) + 1} on, which no head has made whole."
                raise _broken("audit-node", message)


def _rows(after: int, upto: int) -> str:
    return f"row {upto} is" if upto == after + 1 else f"rows {after + 1} to {upto} are"


def _broken(code: str, what: str) -> Invalid:
    return Invalid(code, f"The audit is broken: {what}")


def _not_noted(noted: Noted) -> Invalid:
    return _broken("audit-rewritten", f"its first {noted.size} rows are not those noted.")
