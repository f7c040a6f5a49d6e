"""Publishing of CRLs: which are due, what they list, and their numbers.

    publisher = CrlPublisher(registry, policy, node, make_entries)
    await publisher.publish_due(cas, now)      # every second or so, on every node: one of them publishes

A revocation is a row of the registry without the number of a CRL. A round makes its entry, signs the shard that it
belongs to, and stores shard and number at once: whatever is interrupted is found again. Everything published is in the
registry, so every node serves the same, at once after a start.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta

from msgspec import Struct, field, structs
from msgspec.structs import replace

from fleet.domain import distribution
from fleet.domain.backdating import BACKDATED_STATUS
from fleet.domain.crl import Crl, CrlEntry, CrlForm, CrlHead, PendingRevocation, Revocation
from fleet.domain.crl_store import CrlSigner
from fleet.domain.distribution import buckets_of, ca_name, shards_of_path
from fleet.domain.errors import Conflict, FleetError
from fleet.domain.lease import Lease
from fleet.domain.ports import Registry
from fleet.services.crl_entries import KeptEntries

LEASE = "crl"
LEASE_TIME = timedelta(seconds=10)
"""When the node that publishes has died, another follows after so long."""
LISTED_AT_ONCE = 5_000
FULL_SHARE = 20
"""A full CRL is made again after this many times of what it took: 5 % of a core, however many are revoked."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ALL = range(1 << 16)


class CrlPolicy(Struct, frozen=True):
    """Which CRLs are published."""

    url: str = ""
    """`[publish] url`, without a slash at its end; "": no CRL can name its own URL, so there are neither shards nor
    deltas."""
    shards: int = 1
    delta: bool = False
    validity: timedelta = timedelta(days=1)
    """From thisUpdate to nextUpdate; signed again after half of it."""
    max_delay: timedelta = timedelta(seconds=5)
    """From a revocation to its publication."""

    def is_slow(self, head: CrlHead) -> bool:
        """Whether revocations may miss `max_delay` since they are in this full CRL alone, and it takes that long."""
        return head.made_in is not None and not (self.url and self.shards > 1) and head.made_in > self.max_delay / 2

    def urls_of(self, ca: str) -> tuple[str, str]:
        """Of the full CRL of `ca`, and of its delta CRL; "" for none."""
        delta = self.url + distribution.delta_crl_path(ca) if self.url and self.delta else ""
        return self.url + distribution.full_crl_path(ca) if self.url else "", delta


class CrlCa(Struct, frozen=True):
    """A CA that publishes CRLs."""

    key_identifier: bytes
    signer: Callable[[], CrlSigner]
    """Reads the key. Raises: FleetError, OSError: it is not here."""
    urls_in: Callable[[bytes], tuple[str, str]]
    """URLs that a CRL of it names: in its issuing distribution point, and of its delta CRL; "" for none."""
    is_sharded: bool = True
    """False for the few certificates of a root or of the operators' CA."""
    keeps_validity: bool = False
    """Of a root, whose key may go elsewhere: its next CRL is valid for as long as the one before, or longer."""

    @property
    def name(self) -> str:
        return ca_name(self.key_identifier)


def crl_number(now: datetime, known: Iterable[int]) -> int:
    """The next CRL number: of the time in milliseconds, so that it grows although an older registry was restored."""
    return max(int((now - _EPOCH) / timedelta(milliseconds=1)), *(number + 1 for number in known), 1)


class _Round(Struct, frozen=True):
    """What is known of one CA while its CRLs are made."""

    ca: CrlCa
    heads: dict[str, CrlHead]
    dirty: frozenset[int]
    """Buckets with entries that are in no CRL yet."""
    newest: int
    """The number that brought the newest entry."""
    now: datetime
    behind: frozenset[str] = frozenset()
    """Shards without an entry that another CRL has: there were none when it was published."""

    def is_due(self, path: str, *, changed: bool) -> bool:
        head = self.heads.get(path)
        if head is None or changed or path in self.behind:
            return True
        return self.now >= head.next_update - (head.next_update - head.this_update) / 2

    def named_until(self, path: str) -> datetime | None:
        head = self.heads.get(path)
        return head.named_until if head is not None else None

    def lacks_entries(self, path: str) -> bool:
        """Whether the CRL at `path`, which covers everything, lacks one."""
        head = self.heads.get(path)
        return head is None or bool(self.dirty) or self.newest > max(head.number, head.base)


class CrlPublisher(Struct):
    """Publishes for one node."""

    _registry: Registry
    _policy: CrlPolicy
    _node: str
    _make_entries: Callable[[Sequence[PendingRevocation]], list[CrlEntry]]
    _seconds: Callable[[], float] = time.monotonic
    _full_from: dict[bytes, float] = field(default_factory=dict)
    """When, by `_seconds`, each CA's full CRL may be made again."""
    _compared: set[bytes] = field(default_factory=set)
    """CAs whose full CRL has had the URLs of this policy: looked at once, since a node with others may publish too."""
    _kept: dict[bytes, KeptEntries] = field(default_factory=dict)
    """Of each CA."""

    async def publish_due(self, cas: Sequence[CrlCa], now: datetime, *, at_once: bool = False) -> list[CrlHead]:
        """Publish what is due for `cas`, unless another node does; what was published. `at_once`: all, due or not.

        Raises: Unavailable. FleetError, OSError: a CA's key cannot be read; those of the others have been published.
        """
        lease = await self._lease(now)
        if lease is None:
            return []
        try:
            await self._list(lease, now)
            heads = await self._registry.crl_heads()
            dirty = await self._registry.unpublished()
            made: list[CrlHead] = []
            failure: FleetError | OSError | None = None
            for ca in cas:
                own = {head.path: head for head in heads if head.issuer == ca.key_identifier}
                buckets = frozenset(bucket for issuer, bucket in dirty if issuer == ca.key_identifier)
                newest = await self._registry.last_crl_number(ca.key_identifier)
                round_ = _Round(ca, own, buckets, newest, now)
                try:
                    round_ = replace(round_, behind=await self._behind(round_))
                    made += await self._publish(round_, lease, at_once=at_once)
                except Conflict:
                    raise
                except (FleetError, OSError) as error:
                    failure = failure or error
            if failure is not None:
                raise failure
        except Conflict:
            return []  # another node was faster
        return made

    async def adopt(
        self, crls: Sequence[Crl], revoked: Sequence[tuple[Revocation, bytes]], now: datetime
    ) -> list[CrlHead]:
        """Publish `crls`, which a CA has signed elsewhere and which list `revoked`, unless another node publishes; what
        was published.

        Raises: Unavailable.
        """
        lease = await self._lease(now)
        if lease is None:
            return []
        try:
            await self._registry.add_revoked(revoked)
            await self._list(lease, now)
            await self._registry.publish_crls(crls, [crls[0].head.issuer], lease, now)
        except Conflict:
            return []
        return [crl.head for crl in crls]

    async def _lease(self, now: datetime) -> Lease | None:
        """To write with; None: another node publishes."""
        held = await self._registry.lease(LEASE)
        # What ends later than that was taken by a node whose clock is fast.
        if held is not None and held.owner != self._node and now < held.expires_at <= now + 2 * LEASE_TIME:
            return None
        return Lease(LEASE, self._node, now + LEASE_TIME)

    async def take_over(self, now: datetime) -> None:
        """Publish in place of the node that does: the round that it is in has no effect. Raises: Unavailable."""
        await self._registry.take_over(Lease(LEASE, self._node, now + LEASE_TIME), now)

    async def release(self, now: datetime) -> None:
        """Let another node publish from now on."""
        await self._registry.store_entries((), Lease(LEASE, self._node, now), now)

    async def _list(self, lease: Lease, now: datetime) -> None:
        """Make the entries of what was revoked since."""
        while waiting := await self._registry.pending_revocations(LISTED_AT_ONCE):
            await self._registry.store_entries(await asyncio.to_thread(self._make_entries, waiting), lease, now)

    async def _publish(self, round_: _Round, lease: Lease, *, at_once: bool) -> list[CrlHead]:
        await self._drop_spent_shards(round_, lease)
        number = crl_number(round_.now, [*(head.number for head in round_.heads.values()), round_.newest])
        has_other_urls = await self._has_other_urls(round_.ca)
        due = self._due(round_, at_once=at_once or has_other_urls)
        if not due:
            return []
        ca = round_.ca.key_identifier
        kept = self._kept.setdefault(ca, KeptEntries(self._registry, ca))
        maker = _Maker(self._registry, self._policy, round_, number, round_.ca.signer(), has_other_urls, kept)
        crls: list[Crl] = []
        for path, shard in due:
            if shard is not None:
                crls.append(await maker.shard(path, *shard))
        full, plain, delta = self._whole_paths(round_.ca)
        if full in dict(due) or plain in dict(due):
            began = self._seconds()
            made = await maker.full([path for path in (full, plain) if path])
            took = self._seconds() - began
            self._full_from[ca] = began + took * FULL_SHARE
            made[0] = structs.replace(made[0], head=structs.replace(made[0].head, made_in=timedelta(seconds=took)))
            crls += made
        if delta in dict(due):
            crls.append(await maker.delta(delta))
        covered = full in dict(due) or delta in dict(due) or self._is_sharded(round_.ca)
        whole = [ca] if covered else []
        await self._registry.publish_crls(crls, whole, lease, round_.now)
        self._compared.add(ca)
        await self._drop(round_, lease)
        return [crl.head for crl in crls]

    async def _behind(self, round_: _Round) -> frozenset[str]:
        found: set[str] = set()
        for shards in self._shard_counts(round_):
            paths = [distribution.shard_crl_path(round_.ca.name, shard, shards) for shard in range(shards)]
            numbers = {path: head.number for path in paths if (head := round_.heads.get(path)) is not None}
            if not numbers or round_.newest <= max(numbers.values()):
                continue  # entries come with a shard's CRL, and never to one shard before the others have theirs
            buckets = await self._registry.buckets_after(round_.ca.key_identifier, min(numbers.values()))
            newest = ((paths[bucket * shards // len(_ALL)], number) for bucket, number in buckets)
            found |= {path for path, number in newest if number > numbers.get(path, number)}
        return frozenset(found)

    async def _has_other_urls(self, ca: CrlCa) -> bool:
        """Whether the published full CRL names others than the settings: all of the CA are then signed anew."""
        if ca.key_identifier in self._compared:
            return False
        full = await self._registry.crl(distribution.full_crl_path(ca.name))
        if full is not None and await asyncio.to_thread(ca.urls_in, full.der) != self._policy.urls_of(ca.name):
            return True
        self._compared.add(ca.key_identifier)
        return False

    def _due(self, round_: _Round, *, at_once: bool) -> list[tuple[str, tuple[int, int] | None]]:
        """Paths that are due; of a shard, with its number and how many there are."""
        found: list[tuple[str, tuple[int, int] | None]] = []
        for shards in self._shard_counts(round_):
            dirty = {bucket * shards // len(_ALL) for bucket in round_.dirty}
            for shard in range(shards):
                path = distribution.shard_crl_path(round_.ca.name, shard, shards)
                is_back = shards == self._policy.shards and round_.named_until(path) is not None
                if at_once or round_.is_due(path, changed=shard in dirty or is_back):
                    found.append((path, (shard, shards)))
        full, plain, delta = self._whole_paths(round_.ca)
        is_rested = self._seconds() >= self._full_from.get(round_.ca.key_identifier, 0)
        lacks = round_.lacks_entries(full)
        if at_once or round_.is_due(full, changed=lacks and is_rested) or (plain and plain not in round_.heads):
            found.append((full, None))
        if delta and (at_once or round_.is_due(delta, changed=round_.lacks_entries(delta))):
            found.append((delta, None))
        return found

    def _is_sharded(self, ca: CrlCa) -> bool:
        return bool(self._policy.url) and ca.is_sharded and self._policy.shards > 1

    def _shard_counts(self, round_: _Round) -> list[int]:
        """The present number of shards, and earlier ones, which certificates in use may name."""
        if not self._policy.url:
            return []
        present = {self._policy.shards} if self._is_sharded(round_.ca) else set()
        return sorted(present | {count for path in round_.heads if (count := shards_of_path(path))})

    def _whole_paths(self, ca: CrlCa) -> tuple[str, str, str]:
        """Of the full CRL, of the one without issuing distribution point, and of the delta CRL, "" if there is none."""
        delta = distribution.delta_crl_path(ca.name) if self._policy.url and self._policy.delta else ""
        return distribution.full_crl_path(ca.name), distribution.plain_crl_path(ca.name), delta

    async def _drop_spent_shards(self, round_: _Round, lease: Lease) -> None:
        """Delete shards of earlier numbers that no certificate in use names, once a CRL lasts after that."""
        spent: list[str] = []
        present = {self._policy.shards} if self._is_sharded(round_.ca) else set()
        for shards in set(self._shard_counts(round_)) - present:
            of_count = {path: each.named_until for path, each in round_.heads.items() if shards_of_path(path) == shards}
            known = [until for until in of_count.values() if until is not None]
            if len(known) == len(of_count) and max(known) + self._policy.validity < round_.now:
                spent += of_count
        if spent:
            await self._registry.drop_crls(spent, lease, round_.now)
            for path in spent:
                del round_.heads[path]

    async def _drop(self, round_: _Round, lease: Lease) -> None:
        """Delete, about twice in the validity of a CRL, what none has to list any more."""
        full = round_.heads.get(distribution.full_crl_path(round_.ca.name))
        if full is None or not round_.is_due(full.path, changed=False):
            return
        # RFC 5280, 3.3: an entry stays until it has been in a CRL issued after the certificate's end.
        oldest = min(head.this_update for head in round_.heads.values())
        released = min((head.base for head in round_.heads.values() if head.base), default=full.number)
        await self._registry.drop_revoked(oldest, round_.ca.key_identifier, released, lease, round_.now)


class _Maker(Struct, frozen=True):
    """Makes the CRLs of one round of one CA."""

    registry: Registry
    policy: CrlPolicy
    round: _Round
    number: int
    signer: CrlSigner
    has_other_urls: bool
    """Whether the CRLs of before name other URLs."""
    kept: KeptEntries

    async def shard(self, path: str, shard: int, shards: int) -> Crl:
        entries = await self._entries(path, buckets_of(shard, shards))
        made = await self._signed(path, entries, self._form(path), len(entries))
        if shards == self.policy.shards:
            return made
        named_until = self.round.named_until(path) or await self.registry.latest_end()
        return structs.replace(made, head=structs.replace(made.head, named_until=named_until))

    async def full(self, paths: Sequence[str]) -> list[Crl]:
        """With and without issuing distribution point; where no URL is known, both are without."""
        r, lasts = self.round, self.policy.validity / 2
        parts, count = await self.kept.read(r.dirty, r.newest, r.heads.get(paths[0]), r.now, lasts)
        _, freshest = self.policy.urls_of(r.ca.name)
        with_point = self._form(paths[0], freshest=freshest)
        found = [await self._signed(paths[0], parts, with_point, count)]
        for path in paths[1:]:
            same = found[0].der if not self.policy.url else None
            found.append(await self._signed(path, parts, self._form(""), count, same))
        return found

    async def delta(self, path: str) -> Crl:
        """Against a base that every client has fetched again by the time that it ends."""
        full = distribution.full_crl_path(self.round.ca.name)
        head, before = self.round.heads.get(full), self.round.heads.get(path)
        present = head.number if head is not None else self.number
        base = before.base if before is not None else present
        if timedelta(milliseconds=self.number - base) > self.policy.validity:
            base = present
        if self.has_other_urls:
            base = self.number  # RFC 5280, 6.3.3 (c): base and delta have one issuing distribution point
        entries = await self.registry.changed_entries(self.round.ca.key_identifier, base)
        return await self._signed(path, entries, self._form(full, base=base), len(entries))

    async def _entries(self, path: str, buckets: range) -> list[bytes]:
        before = self.round.heads.get(path)
        since = before.this_update if before is not None else _EPOCH
        return await self.registry.crl_entries(self.round.ca.key_identifier, buckets, since)

    def _form(self, path: str, *, base: int = 0, freshest: str = "") -> CrlForm:
        this_update = (self.round.now - BACKDATED_STATUS).replace(microsecond=0)
        next_update = (self.round.now + self.policy.validity).replace(microsecond=0)
        if self.round.ca.keeps_validity:
            next_update = max([next_update, *(head.next_update for head in self.round.heads.values())])
        return CrlForm(self.number, this_update, next_update, self._url(path) if path else "", base, freshest)

    def _url(self, path: str) -> str:
        return self.policy.url + path if self.policy.url else ""

    async def _signed(
        self, path: str, entries: Sequence[bytes], form: CrlForm, count: int, der: bytes | None = None
    ) -> Crl:
        """`entries`, one by one or several in a row, are `count`."""
        if der is None:
            der = await asyncio.to_thread(self.signer.sign, form, entries)
        issuer = self.round.ca.key_identifier
        return Crl(CrlHead(path, issuer, self.number, form.base, form.this_update, form.next_update, count), der)
