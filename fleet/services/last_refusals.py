"""The last refusal of each device, written in batches: one that tries again and again costs no write for each time.

last_refusals_of(registry).note(entry)      # at once, in memory
await last_refusals_of(registry).write()    # every few seconds, by the job that writes due rows of the audit
"""

from itertools import islice
from weakref import WeakKeyDictionary

from fleet.domain.changes import AuditEntry
from fleet.domain.device_refusal import DeviceRefusal
from fleet.domain.ports import Registry

DEVICES_MAX = 10_000  # that wait: 4 MB; then the one that has waited the longest gives way
BATCH_MAX = 512  # devices in one transaction
_DEVICE = "device "


class LastRefusals:
    """Of one process."""

    def __init__(self) -> None:
        self._waiting: dict[str, DeviceRefusal] = {}

    def note(self, entry: AuditEntry) -> None:
        """A refusal of a device that has proven who it is: the actor, or else the subject."""
        name = entry.actor if entry.actor.startswith(_DEVICE) else entry.subject
        if not name.startswith(_DEVICE):
            return
        device_id = name.removeprefix(_DEVICE)
        if device_id not in self._waiting and len(self._waiting) >= DEVICES_MAX:
            del self._waiting[next(iter(self._waiting))]
        self._waiting[device_id] = DeviceRefusal(device_id, entry.at, entry.action, entry.outcome, entry.address)

    async def write(self, registry: Registry) -> None:
        """All that wait now. Raises: Unavailable: what was not written waits on."""
        for _ in range(0, len(self._waiting), BATCH_MAX):
            batch = [*islice(self._waiting.values(), BATCH_MAX)]
            for each in batch:
                del self._waiting[each.device_id]
            try:
                await registry.keep_refusals(batch)
            except BaseException:
                self._waiting = {each.device_id: each for each in batch} | self._waiting
                raise


_OF_REGISTRY: WeakKeyDictionary[Registry, LastRefusals] = WeakKeyDictionary()


def last_refusals_of(registry: Registry) -> LastRefusals:
    """The instance for `registry`, one in each process."""
    return _OF_REGISTRY.setdefault(registry, LastRefusals())
