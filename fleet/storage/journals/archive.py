"""Archive files of rows that retention deletes: JSON lines, 0600, durable before the deletion, never overwritten.

    with Archive(folder).held() as archive:         # one process at a time
        name = archive.put("events-1-1000", lines)  # whole and durable, but still `NAME.jsonl.pending`
        ...                                         # now the registry may delete the rows
        archive.settle(name)                        # `NAME.jsonl`

A crash between the two leaves a pending file. The next run finds it with `pending`, deletes its rows and settles it, so
that no row is lost and none is in two files.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fleet.config.durable_files import sync
from fleet.domain.errors import Conflict, Invalid

PENDING = ".jsonl.pending"
SETTLED = ".jsonl"
Line = dict[str, Any]


class Archive:
    """The folder `folder`, made when it is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def held(self) -> Iterator["Archive"]:
        """Hold the folder's lock. Raises: Conflict (`archive-in-use`): another process holds it. OSError."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                message = f"Another process is archiving into {self.folder}."
                raise Conflict("archive-in-use", message, "Let it finish.") from error
            yield self
        finally:
            os.close(handle)

    def put(self, name: str, lines: Iterable[Line]) -> str:
        """Write `lines` into a new pending file named after `name`; returns its final name once it is durable.

        Raises: OSError: nothing was written.
        """
        name = self._free(name)
        fresh = self.folder / f".{name}.new"
        with suppress(FileNotFoundError):
            fresh.unlink()  # of a crash
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                for line in lines:
                    file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(self.folder / f"{name}{PENDING}")
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        sync(self.folder)
        return name

    def _free(self, name: str) -> str:
        """`name`, or with a number when an older file has it: after a restore, numbers begin again from the backup."""
        free, number = name, 2
        while any((self.folder / f"{free}{ending}").exists() for ending in (PENDING, SETTLED)):
            free, number = f"{name}-{number}", number + 1
        return free

    def settle(self, name: str) -> Path:
        """Mark `name` as complete: its rows have been deleted from the registry."""
        settled = self.folder / f"{name}{SETTLED}"
        (self.folder / f"{name}{PENDING}").rename(settled)
        sync(self.folder)
        return settled

    def pending(self) -> list[str]:
        """Names of files that a crash has kept from being settled, in order."""
        return sorted(path.name.removesuffix(PENDING) for path in self.folder.glob(f"*{PENDING}"))

    def read_pending(self, name: str) -> list[Line]:
        """Raises: Invalid (`archive-damaged`)."""
        return list(read_lines(self.folder / f"{name}{PENDING}"))

    def settled(self, kind: str) -> list[Path]:
        """The files of one kind, in order."""
        return sorted(self.folder.glob(f"{kind}-*{SETTLED}"))


def read_lines(path: Path) -> Iterator[Line]:
    """Each line of an archive's file. Raises: Invalid (`archive-damaged`). OSError."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                document = json.loads(line)
                if not isinstance(document, dict) or not line.endswith(b"\n"):
                    raise ValueError("no whole object")
            except ValueError as error:
                raise Invalid("archive-damaged", f"{path} is damaged in line {number}.") from error
            yield document
