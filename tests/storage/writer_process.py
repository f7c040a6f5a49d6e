"""A process that writes to a registry: `python writer_process.py FILE PREFIX COUNT`.

Adds devices PREFIX-0, PREFIX-1, … and prints each id as soon as its commit has returned; a burst of them is under way
at any time. COUNT 0 goes on until the process is killed.
"""

import asyncio
import itertools
import sys
from datetime import UTC, datetime
from pathlib import Path

from fleet.domain.changes import AuditEntry, Change, Event, EventKind
from fleet.domain.device import Device, DeviceState, device_id
from fleet.domain.writes import Insert
from fleet.storage.sqlite.registry import SqliteRegistry

NOW = datetime(2026, 3, 1, tzinfo=UTC)
AT_ONCE = 8


async def main(path: Path, prefix: str, count: int) -> None:
    registry = await SqliteRegistry.open(path, create=False)
    numbers = iter(range(count) if count else itertools.count())

    async def write() -> None:
        for n in numbers:
            device = Device(device_id(f"{prefix}-{n}"), "cam2", DeviceState.REGISTERED, NOW)
            audit = AuditEntry(NOW, "operator", "device.add", f"device {device.id}", "ok")
            events = (Event(EventKind.DEVICE_STATE, device.id, device.state.value),)
            await registry.commit(Change(audit, (Insert(device),), events))
            print(device.id, flush=True)

    await asyncio.gather(*(write() for _ in range(AT_ONCE)))
    await registry.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
