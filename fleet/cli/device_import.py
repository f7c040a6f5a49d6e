"""`fleet device import`: a manifest of devices, however long, from a file or a pipe."""

import csv
import io
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import click

from fleet.cli.errors import CliError, attempting
from fleet.cli.long_work import Progress, noting_interrupts
from fleet.cli.manifest_files import Items, rows_of
from fleet.cli.output import print_value
from fleet.client.client import Client
from fleet.client.manifest import ManifestImport
from fleet.config.durable_files import new_file
from fleet.config.streams import EXIT_FAILED
from fleet.domain.errors import Conflict, FleetError
from fleet.services.bulk import new_bulk_id
from fleet.services.importing import ROWS_AT_ONCE, Counts, Numbered, RowRefused

REFUSED_SHOWN_MAX = 20
ListError = Callable[[RowRefused], None]
ERROR_COLUMNS = ("line", "device_id", "code", "message")
LINE_SIZE_MAX = 64  # the line of these names


def import_manifest(client: Client, file: Path, errors_file: Path | None, output: str) -> None:
    """Register the devices of `file`, "-" for standard input; print a summary. Exit 1 when a row was refused."""
    is_pipe = str(file) == "-"
    if errors_file is None and not is_pipe:
        errors_file = file.with_name(f"{file.name}.errors")
    work = _Import(ManifestImport(client, new_bulk_id()), errors_file)
    name = "standard input" if is_pipe else f"'{file}'"
    started = time.monotonic()
    with attempting(f"importing {name}"), ExitStack() as opening:
        if is_pipe:
            source: TextIO = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", newline="")
        else:
            source = opening.enter_context(file.open(encoding="utf-8", newline=""))
        work.run(source, name)
    _report(work, name, time.monotonic() - started, output)


@dataclass(slots=True)
class _Import:
    """One run, and how far it has come."""

    manifest: ManifestImport
    errors_file: Path | None
    first_refused: list[RowRefused] = field(default_factory=list)
    problem: FleetError | None = None
    """Why it could not go on."""
    is_interrupted: bool = False
    _progress: Progress = field(default_factory=Progress)

    @property
    def counts(self) -> Counts:
        return self.manifest.counts

    def run(self, source: TextIO, name: str) -> None:
        former = self.errors_file if self.errors_file is not None and _is_former_list(self.errors_file) else None
        with noting_interrupts() as interrupts, _errors_in(self.errors_file, force=former is not None) as list_error:
            try:
                self._take_all(rows_of(source, name), list_error, interrupts)
            except FleetError as problem:
                self.problem = problem
        if former is not None and self.problem is None and not self.is_interrupted and not self.counts.refused:
            former.unlink(missing_ok=True)  # its lines have been seen to

    def _take_all(self, items: Items, list_error: ListError, interrupts: Sequence[int]) -> None:
        with ThreadPoolExecutor(1) as reader:
            chunk = reader.submit(_next_chunk, items).result()
            while not chunk.is_empty and not interrupts:
                following = reader.submit(_next_chunk, items)  # read while these are written
                refused = [*chunk.refused, *self.manifest.take(chunk.rows)]
                self.counts.refused += len(chunk.refused)
                for each in sorted(refused, key=lambda one: one.line):
                    list_error(each)
                    if len(self.first_refused) < REFUSED_SHOWN_MAX:
                        self.first_refused.append(each)
                counts = self.counts
                self._progress.show(
                    f"{counts.seen} rows: {counts.added} added, {counts.unchanged} unchanged, {counts.refused} refused"
                )
                if chunk.problem is not None:
                    break
                chunk = following.result()
        if chunk.problem is not None:
            raise chunk.problem
        self.is_interrupted = not chunk.is_empty


@dataclass(slots=True)
class _Chunk:
    rows: list[Numbered] = field(default_factory=list)
    refused: list[RowRefused] = field(default_factory=list)
    problem: FleetError | None = None
    """Why nothing more can be read."""

    @property
    def is_empty(self) -> bool:
        return not self.rows and not self.refused


def _next_chunk(items: Iterator[Numbered | RowRefused]) -> _Chunk:
    chunk = _Chunk()
    try:
        for item in items:
            if isinstance(item, Numbered):
                chunk.rows.append(item)
            else:
                chunk.refused.append(item)
            if len(chunk.rows) + len(chunk.refused) == ROWS_AT_ONCE:
                break
    except FleetError as problem:
        chunk.problem = problem
    return chunk


def _is_former_list(path: Path) -> bool:
    """Whether the errors file of an earlier run is at `path`. Raises: Conflict (`file-exists`): it is anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISREG(mode):
        with path.open("rb") as file:
            if file.readline(LINE_SIZE_MAX).rstrip(b"\r\n") == ",".join(ERROR_COLUMNS).encode():
                return True
    raise Conflict(
        "file-exists",
        f"{path} exists, and is not a list of refused rows; nothing was imported.",
        "Name another file with --errors, or remove that one.",
    )


@contextmanager
def _errors_in(path: Path | None, *, force: bool) -> Iterator[ListError]:
    """What lists a row in the errors file, which is there, whole, after the block if one was refused.

    `force`: it takes the place of an earlier run's.
    """
    if path is None:
        yield lambda refused: None
        return
    with ExitStack() as opening:
        file: io.TextIOWrapper | None = None

        def list_error(refused: RowRefused) -> None:
            nonlocal file
            if file is None:
                binary = opening.enter_context(new_file(path, secret=True, force=force))
                file = io.TextIOWrapper(binary, encoding="utf-8", newline="")
                opening.callback(file.detach)  # flushes, and leaves it open for its fsync
                csv.writer(file).writerow(ERROR_COLUMNS)
            shown = "".join(c if c.isprintable() else "?" for c in refused.device_id)
            csv.writer(file).writerow((refused.line, shown, refused.code, refused.message))

        yield list_error


def _report(work: _Import, name: str, seconds: float, output: str) -> None:
    counts = work.counts
    if work.problem is not None and not counts.seen:
        raise CliError.of(f"importing {name}", work.problem)
    if work.errors_file is None or output == "table":
        for each in work.first_refused:
            click.echo(f"Line {each.line}: {each.device_id or '?'}: {each.message} ({each.code})", err=True)
        if counts.refused > len(work.first_refused):
            click.echo(f"And {counts.refused - len(work.first_refused)} more.", err=True)
    value: dict[str, object] = {
        "bulk": work.manifest.bulk,
        "rows": counts.seen,
        "added": counts.added,
        "unchanged": counts.unchanged,
        "refused": counts.refused,
        "errors_file": str(work.errors_file) if work.errors_file is not None and counts.refused else None,
        "interrupted": work.is_interrupted,
        "seconds": round(seconds, 1),
        "peak_rss_mb": _peak_rss_mb(),
    }
    table = {"peak memory, MB" if key == "peak_rss_mb" else key: item for key, item in value.items()}
    print_value(value, output, table)
    if work.problem is not None:
        raise CliError.of(f"importing {name}", work.problem, "What was taken stays; put that right and run it again")
    if work.is_interrupted:
        click.echo("Interrupted. What was taken stays; run it again for the rest.", err=True)
    if work.is_interrupted or counts.refused:
        sys.exit(EXIT_FAILED)


def _peak_rss_mb() -> int | None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
