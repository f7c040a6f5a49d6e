"""`fleet token create --devices FILE`: a token for each of thousands of devices, restartable.

A token is in the output, durably, before the next one is made; one that cannot be written is revoked. Each request
carries an idempotency key of the batch and the device, and the batch's id is kept beside the output until it is
complete: a token whose answer or line was lost in a crash is found by the next run, revoked, and made again.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import click

from fleet.cli.errors import CliError, attempting
from fleet.cli.long_work import Progress, noting_interrupts
from fleet.cli.output import Row, print_value
from fleet.client.client import Client
from fleet.client.tokens import delivered_token, revoke_if_valid
from fleet.config.durable_files import MODE_SECRET, must_be_ours, write_file
from fleet.config.small_files import LargeFile, read_small
from fleet.config.streams import EXIT_FAILED
from fleet.domain.device import device_id
from fleet.domain.errors import FleetError, Invalid, Unauthenticated, Unavailable
from fleet.wire.errors import Malformed
from fleet.wire.text import without_mark

ID_SIZE_MAX = 256
FILE_SIZE_MAX = 256 * 1024 * 1024  # two million lines

_LINE = re.compile(rb"([^,\n]{1,64}),([0-9a-f]{12})\.[\w-]+")
_CUT_OFF = re.compile(rb"[^,\n]{1,64},([0-9a-f]{12})\.")
_BATCH_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(slots=True)
class _Counts:
    made: int = 0
    failed: int = 0


def create_for_each(client: Client, file: Path, terms: Row, out: Path | None, output: str) -> None:
    """Make a token with `terms` for each device id in `file`. Exit 1 when any was refused, or on an interrupt."""
    counts = _Counts()
    with attempting("making tokens"):
        ids = _ids_in(file)
        written, batch = (None, _Batch()) if out is None else _batch_at(client, out)
        todo = [each for each in ids if each not in batch.done]
        with noting_interrupts() as interrupts:
            requests = [({"device": each, **terms}, f"{batch.id}-{each}") for each in todo]
            _make_all(client, requests, _writer(written, output, counts), counts, interrupts)
        left = len(todo) - counts.made - counts.failed
        if output == "json" and out is None:
            click.echo("]" if counts.made else "[]")
        if batch.file is not None and not left:
            batch.file.unlink(missing_ok=True)
    if out is not None:
        skipped = len(ids) - len(todo)
        value = {"file": str(out), "made": counts.made, "skipped": skipped, "failed": counts.failed, "left": left}
        print_value(value, output)
    if left:
        devices = "1 device is" if left == 1 else f"{left} devices are"
        click.echo(f"Interrupted: {devices} left. Run it again for the rest.", err=True)
    if left or counts.failed:
        sys.exit(EXIT_FAILED)


def _make_all(
    client: Client,
    requests: Sequence[tuple[Row, str]],
    write: Callable[[str, Row], None],
    counts: _Counts,
    interrupts: Sequence[int],
) -> None:
    """Make a token for each request, a body and its idempotency key. A device that is refused is named and skipped.

    Raises: FleetError: the rest would fail as well. OSError: the output cannot be written.
    """
    progress = Progress(at_once=False)
    for number, (body, key) in enumerate(requests, 1):
        if interrupts:
            return
        try:
            with delivered_token(client, body, key) as made:
                write(body["device"], made)
            counts.made += 1
        except (Unavailable, Unauthenticated):
            raise
        except FleetError as error:
            CliError.of(f"making a token for device '{body['device']}'", error).show()
            counts.failed += 1
        progress.show(f"{number} of {len(requests)}")


def _writer(descriptor: int | None, output: str, counts: _Counts) -> Callable[[str, Row], None]:
    """What writes one token of a device, so that it is there when this returns."""

    def to_file(device: str, made: Row) -> None:
        assert descriptor is not None  # noqa: S101
        _append(descriptor, f"{device},{made['token']}\n".encode())

    def to_terminal(device: str, made: Row) -> None:
        if output == "json":
            value = {"id": made["id"], "device": device, "token": made["token"], "expires_at": made["expires_at"]}
            click.echo(("[" if counts.made == 0 else ",\n ") + json.dumps(value), nl=False)
        else:
            click.echo(f"{device},{made['token']}")

    return to_terminal if descriptor is None else to_file


def _append(descriptor: int, line: bytes) -> None:
    """All of `line`, durable when this returns; or nothing of it. Raises: OSError."""
    size = os.fstat(descriptor).st_size
    try:
        left = line
        while left:  # a disk that is nearly full takes a part
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _open(out: Path) -> tuple[int, bool]:
    """The output, open from here to the end of the program, so that no other file takes its place; whether it is new.

    Raises: Invalid (`bad-output`): a link, no regular file, or one that others can read or own. OSError.
    """
    must_be_ours(out.parent)
    flags = os.O_RDWR | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with contextlib.suppress(FileExistsError):
        return os.open(out, flags | os.O_CREAT | os.O_EXCL, MODE_SECRET), True
    try:
        descriptor = os.open(out, flags)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise Invalid("bad-output", f"{out} is a symbolic link.", "Name another file.") from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise Invalid("bad-output", f"{out} is not a regular file.", "Name another file.")
    if os.name == "posix" and (found.st_uid != os.geteuid() or found.st_mode & 0o077):
        raise Invalid("bad-output", f"{out} belongs to another user, or others can read it.", "Use a file of mode 600.")
    return descriptor, False


@dataclass(frozen=True, slots=True)
class _Batch:
    """One run, or several that follow one another after a crash."""

    id: str = field(default_factory=lambda: secrets.token_hex(16))
    done: frozenset[str] = frozenset()
    """Devices whose token is in the output."""
    file: Path | None = None
    """Where the id is kept until the batch is complete."""


def _batch_at(client: Client, out: Path) -> tuple[int, _Batch]:
    """`out`, open, and the batch that writes into it: the one that was cut off there, or a new one.

    Raises: Invalid (`bad-output`): it holds something else. OSError.
    """
    descriptor, is_new = _open(out)
    done = _resumed(client, out, descriptor)
    file = out.with_name(f".{out.name}.batch")
    id_text = _kept_id(file)
    if (
        is_new or id_text is None
    ):  # an output that is gone was moved away: its tokens are in use, and of no concern here
        id_text = secrets.token_hex(16)
        write_file(file, id_text.encode(), secret=True, force=True)
    return descriptor, _Batch(id_text, done, file)


def _kept_id(file: Path) -> str | None:
    """The batch's id in `file`, None if there is none. Raises: Invalid (`bad-output`): anything else. OSError."""
    try:
        if stat.S_ISREG(file.lstat().st_mode):
            text = read_small(file, ID_SIZE_MAX).decode("ascii", errors="replace").strip()
            if _BATCH_ID.fullmatch(text):
                return text
    except FileNotFoundError:
        return None
    except LargeFile:
        pass
    raise Invalid("bad-output", f"{file} is not the state of a batch of tokens.", "Remove it.")


def _resumed(client: Client, out: Path, descriptor: int) -> frozenset[str]:
    """Devices with a token in `out`. A last line that was cut off is removed, and its token revoked."""
    with os.fdopen(os.dup(descriptor), "rb") as opened:
        data = _limited(opened, out)
    whole, newline, cut_off = data.rpartition(b"\n")
    lines = [_LINE.fullmatch(line) for line in whole.splitlines()]
    if not all(lines) or (cut_off and not _CUT_OFF.match(cut_off) and len(cut_off) > 80):
        raise Invalid("bad-output", f"{out} holds something else than DEVICE_ID,TOKEN lines.", "Name another file.")
    if cut_off:
        found = _CUT_OFF.match(cut_off)
        if found is not None:
            revoke_if_valid(client, found[1].decode())
        os.ftruncate(descriptor, len(whole) + len(newline))
    return frozenset(line[1].decode(errors="replace") for line in lines if line is not None)


def _ids_in(file: Path) -> list[str]:
    """Device ids, each once. Empty lines, and those that start with #, are skipped.

    Raises: Invalid (`bad-device-id`): with the line. OSError.
    """
    with click.open_file(str(file), "rb") as opened:
        data = _limited(opened, file)
    try:
        data = without_mark(data)
    except Malformed as error:
        raise Invalid("bad-device-id", f"{file} is UTF-16 text.", "Save it as UTF-8.") from error
    ids: dict[str, None] = {}
    for number, line in enumerate(data.decode("utf-8", "backslashreplace").splitlines(), 1):
        text = line.strip()
        if text and not text.startswith("#"):
            try:
                ids[device_id(text)] = None
            except Invalid as error:
                raise Invalid(error.code, f"Line {number}: {error.message}", error.advice) from None
    return list(ids)


def _limited(opened: IO[Any], file: Path) -> bytes:
    data: bytes = opened.read(FILE_SIZE_MAX + 1)
    if len(data) > FILE_SIZE_MAX:
        raise Invalid("file-too-large", f"{file} is larger than {FILE_SIZE_MAX >> 20} MiB.")
    return data
