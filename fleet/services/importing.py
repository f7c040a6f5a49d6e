"""Bringing in a manifest: many rows in one Change, each judged by itself; the same file again changes nothing.

    importer = Importer(registry, act, bulk=new_bulk_id())
    for chunk in chunks:
        for refused in await importer.take(chunk): ...

Whatever was taken is durable, and a row that was taken before is known by its digest: so an import that was cut off is
resumed by running it again.
"""

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Self

from msgspec import Struct, field

from fleet.domain.changes import AuditEntry, Change, Event, EventKind
from fleet.domain.device import Device, DeviceState, Tags, checked_serial, device_id
from fleet.domain.errors import Conflict, FleetError, Invalid
from fleet.domain.manifest import ListedDevice, ManifestEntry, ManifestFacts, ManifestRow, serial_key
from fleet.domain.model_rules import ModelKind
from fleet.domain.ports import Registry
from fleet.domain.tags import checked_groups, checked_tags
from fleet.domain.writes import ImportDevices
from fleet.services.inventory import application_model

ROWS_AT_ONCE = 1000  # in one Change: some 50 ms for which others wait
LOOKS_MAX = 4  # each further look means that somebody else's commit came between
ACTION = "device.import"


class Numbered(Struct, frozen=True):
    """A row and its line number."""

    line: int
    row: ManifestRow


class RowRefused(Struct, frozen=True):
    """A row that was not taken."""

    line: int
    device_id: str
    code: str
    message: str

    @classmethod
    def by(cls, error: FleetError, line: int, device_id: str) -> Self:
        return cls(line, device_id, error.code, f"{error.message} {error.advice}".rstrip())


class Counts(Struct):
    added: int = 0
    unchanged: int = 0
    """Taken by an earlier run, or twice in the file."""
    refused: int = 0

    @property
    def seen(self) -> int:
        return self.added + self.unchanged + self.refused


def checked_row(
    id_text: str, model: str, hardware_serial: str, key_sha256: bytes | None, tags: Tags, groups: Sequence[str]
) -> ManifestRow:
    """Raises: Invalid: `bad-device-id`, `bad-hardware-serial`, `no-proof`, what `checked_tags` and `checked_groups`
    raise.
    """
    checked_serial(hardware_serial)
    if not hardware_serial and key_sha256 is None:
        raise Invalid("no-proof", "The row has neither a hardware serial nor a key's hash to identify the device.")
    return ManifestRow(
        device_id(id_text), model, hardware_serial, key_sha256, checked_tags(tags), checked_groups(groups)
    )


class Importer(Struct):
    """Takes the rows of one import, chunk by chunk. Nothing of it grows with their number."""

    registry: Registry
    actor: str
    clock: Callable[[], datetime]
    bulk: str
    """Ties the audit rows together."""
    address: str = ""
    """Whence the rows come, "" at the console."""
    counts: Counts = field(default_factory=Counts)
    sees: Callable[[str], bool] = lambda model: True
    """Whether what belongs to a model may be named in a refusal."""
    _models: dict[str, ModelKind | None] = field(default_factory=dict)

    async def take(self, chunk: Sequence[Numbered]) -> list[RowRefused]:
        """Register the devices of `chunk` that are new, in one Change, durable when this returns; who was refused.

        Raises: Unavailable.
        """
        for _ in range(LOOKS_MAX):
            new, unchanged, refused = await self._judged(chunk)
            try:
                if new:
                    await self.registry.commit(self._change(new))
            except Conflict:
                continue  # somebody has registered one of them meanwhile: the next look shows which
            return self._counted(len(new), unchanged, refused)
        # Somebody works at the same devices all the time. One by one, each row meets its own conflict.
        if len(chunk) > 1:
            return [each for one in chunk for each in await self.take((one,))]
        [one] = chunk
        clash = RowRefused(one.line, one.row.device_id, "changed-meanwhile", "The device is being changed by others.")
        return self._counted(0, 0, [clash])

    def _counted(self, added: int, unchanged: int, refused: list[RowRefused]) -> list[RowRefused]:
        self.counts.added += added
        self.counts.unchanged += unchanged
        self.counts.refused += len(refused)
        return refused

    async def _judged(self, chunk: Sequence[Numbered]) -> tuple[list[Numbered], int, list[RowRefused]]:
        facts = await self.registry.manifest_facts(
            [each.row.device_id for each in chunk],
            (),
            [each.row.key_sha256 for each in chunk if each.row.key_sha256 is not None],
        )
        serials = [(each.row.model, each.row.hardware_serial) for each in chunk if each.row.hardware_serial]
        known = _Known(facts, await self.registry.serial_holders(serials), self.sees)
        new: list[Numbered] = []
        refused: list[RowRefused] = []
        for each in chunk:
            try:
                await self._check_model(each.row.model)
                if known.has(each.row):
                    continue
                known.add(each.row)
                new.append(each)
            except FleetError as error:
                refused.append(RowRefused.by(error, each.line, each.row.device_id))
        return new, len(chunk) - len(new) - len(refused), refused

    async def _check_model(self, name: str) -> None:
        """Raises: Invalid (`no-such-model`). Refused (`application-model`)."""
        if name not in self._models:
            model = await self.registry.model(name)
            self._models[name] = model.rules.kind if model is not None else None
        kind = self._models[name]
        if kind is None:
            raise Invalid("no-such-model", f"There is no model {name[:80]!r}.", "Add it: fleet model add.")
        if kind is not ModelKind.DEVICE:
            raise application_model(name)

    def _change(self, new: Sequence[Numbered]) -> Change:
        now = self.clock()
        digests = hashlib.sha256()
        listed = []
        for each in sorted(new, key=lambda numbered: numbered.row.device_id):  # two importers don't lock each other out
            row, digest = each.row, each.row.digest()
            digests.update(digest)
            state = DeviceState.REGISTERED
            device = Device(row.device_id, row.model, state, now, row.hardware_serial, tags=row.tags, groups=row.groups)
            entry = ManifestEntry(row.device_id, row.model, row.hardware_serial, row.key_sha256, digest)
            listed.append(ListedDevice(device, entry))
        detail = {
            "bulk": self.bulk,
            "devices": str(len(listed)),
            "lines": f"{new[0].line}-{new[-1].line}",
            "first": listed[0].device.id,
            "last": listed[-1].device.id,
            "rows_sha256": digests.hexdigest(),
        }
        audit = AuditEntry(now, self.actor, ACTION, "manifest", "ok", self.address, detail)
        event = Event(EventKind.DEVICES_IMPORTED, self.bulk, str(len(listed)))
        return Change(audit, (ImportDevices(tuple(listed)),), (event,))


class _Known:
    """What is registered, with the rows of a chunk as they are judged."""

    def __init__(
        self, facts: ManifestFacts, holders: Sequence[tuple[str, str, str]], sees: Callable[[str], bool]
    ) -> None:
        self._digests = {entry.device_id: entry.row_sha256 for entry in facts.entries}
        self._serials = {serial_key(model, serial): device_id for model, serial, device_id in holders}
        self._keys: dict[bytes, str] = {
            e.key_sha256: e.device_id if sees(e.model) else "another device"
            for e in facts.entries
            if e.key_sha256 is not None
        }
        self._devices = set(facts.devices)

    def has(self, row: ManifestRow) -> bool:
        """Whether `row` was taken before.

        Raises: Conflict: `device-exists`, `row-differs`, `serial-taken`, `key-taken`.
        """
        digest = self._digests.get(row.device_id)
        if digest == row.digest():
            return True
        if digest is not None:
            raise Conflict("row-differs", f"Device {row.device_id} was imported with other values.")
        if row.device_id in self._devices:
            raise Conflict("device-exists", f"Device {row.device_id} is registered already, and not by an import.")
        holder = self._serials.get(serial_key(row.model, row.hardware_serial))
        if holder is not None and holder != row.device_id:  # itself: taken meanwhile, which the next look shows
            raise Conflict("serial-taken", f"The hardware serial is that of {holder}, of the same model.")
        keeper = self._keys.get(row.key_sha256) if row.key_sha256 is not None else None
        if keeper is not None:
            raise Conflict("key-taken", f"The key is that of {keeper}.")
        return False

    def add(self, row: ManifestRow) -> None:
        self._digests[row.device_id] = row.digest()
        self._devices.add(row.device_id)
        if row.hardware_serial:
            self._serials[serial_key(row.model, row.hardware_serial)] = row.device_id
        if row.key_sha256 is not None:
            self._keys[row.key_sha256] = row.device_id
