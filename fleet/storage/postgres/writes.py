"""A Change as it goes to the database: its steps as JSON, and the locks that they need."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from fleet.domain.changes import Committed
from fleet.domain.errors import Conflict, Invalid
from fleet.domain.writes import ImportDevices, TagDevice, Write
from fleet.storage import mapping
from fleet.storage.postgres import functions as sql
from fleet.storage.postgres.locks import locks_of
from fleet.storage.steps import Step, steps_of


def _steps_of(write: Write) -> Iterator[Step]:
    """As fleet.storage.steps, with bulk statements for imports."""
    if isinstance(write, ImportDevices):
        yield from _list_devices(write)
        return
    if isinstance(write, TagDevice):
        yield sql.DROP_TAGS, (write.device_id,)
    yield from steps_of(write)


def _list_devices(write: ImportDevices) -> Iterator[Step]:
    devices = (_json([mapping.DEVICE.row(each.device) for each in write.devices]),)
    entries = (_json([mapping.MANIFEST.row(each.entry) for each in write.devices]),)
    tags = [row for each in write.devices for row in mapping.tag_rows(each.device)]
    yield sql.HAVE_MODELS, devices
    yield sql.DEVICES_ARE_NEW, devices
    yield sql.LIST_DEVICES, devices
    yield sql.DEVICES_INSERTED, devices
    yield sql.SERIALS_ARE_FREE, devices
    yield sql.LIST_ENTRIES, entries
    yield sql.ENTRIES_INSERTED, entries
    if tags:
        yield sql.LIST_TAGS, (_json(tags),)
        yield sql.TAGS_INSERTED, (_json(tags),)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=bytes.hex)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A Change as it goes over the wire."""

    change: Committed
    steps: tuple[Step, ...]
    text: str
    """The steps as JSON: a list of [statement, must find a row, parameters]."""
    locks: frozenset[int]

    def outcome(self, answer: str | None) -> Exception | None:
        """The outcome that the batch's answer for this Change means; None: written."""
        if answer is None:
            return None
        kind, _, rest = answer.partition(" ")
        if kind == "step":
            statement, parameters = self.steps[int(rest)]
            return statement.conflict(parameters)
        return Conflict("against-the-rules", f"The registry's own rules forbid this: {rest}.")


def prepared(change: Committed) -> Prepared:
    """Raises: ValueError, Invalid (`bad-value`): a text in it cannot be stored."""
    steps = tuple(step for write in change.writes for step in _steps_of(write))
    if (entry := change.audit) is not None:
        _must_be_text(entry.actor, entry.action, entry.subject, entry.outcome, entry.address)
    for event in change.events:
        _must_be_text(event.kind, event.subject, event.detail)
    for _, parameters in steps:
        _must_be_text(*(each for each in parameters if isinstance(each, str)))
    text = _json([(sql.NUMBER_OF[statement], bool(statement.code), parameters) for statement, parameters in steps])
    return Prepared(change, steps, text, frozenset(lock for write in change.writes for lock in locks_of(write)))


def _must_be_text(*texts: str) -> None:
    for text in texts:
        if "\0" in text:
            raise Invalid("bad-value", "A text holds the character NUL, which PostgreSQL cannot store.")
        text.encode()
