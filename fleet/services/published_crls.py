"""Published CRLs, as relying parties fetch them: the same on every node.

crls = PublishedCrls(registry, fresh_for=timedelta(seconds=5))
file = await crls.find("/crl/3f….crl")       # None: nothing is published there
"""

from datetime import timedelta

from fleet.domain.crl import CrlHead
from fleet.domain.crl_store import CrlStore
from fleet.domain.published_file import CRL, PublishedFile

KEPT_BYTES_MAX = 256 * 1024 * 1024  # in memory; a CRL beyond it is read from the registry each time


class PublishedCrls:
    """Finds CRLs by path. The last ones are kept in memory; whether there is a newer one is asked each time."""

    def __init__(self, store: CrlStore, *, fresh_for: timedelta) -> None:
        """A cache may give a CRL for `fresh_for` without asking again."""
        self._store = store
        self._fresh_for = fresh_for
        self._kept: dict[str, tuple[CrlHead, PublishedFile]] = {}

    async def find(self, path: str) -> PublishedFile | None:
        """The CRL at this URL path. Raises: Unavailable."""
        if not path.startswith("/crl/"):
            return None
        head = await self._store.crl_head(path)
        held = self._kept.get(path)
        if head is not None and held is not None and held[0] == head:
            return held[1]
        self._kept.pop(path, None)
        crl = await self._store.crl(path) if head is not None else None
        if crl is None:
            return None
        file = PublishedFile(crl.der, CRL, crl.head.this_update, self._fresh_for, crl.head.next_update)
        self._keep(crl.head, file)
        return file

    def _keep(self, head: CrlHead, file: PublishedFile) -> None:
        self._kept[head.path] = head, file
        used = sum(len(each.body) for _, each in self._kept.values())
        for path in list(self._kept):  # the one that was read first goes first
            if used <= KEPT_BYTES_MAX:
                break
            used -= len(self._kept.pop(path)[1].body)
