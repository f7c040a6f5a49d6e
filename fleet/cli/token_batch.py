"""`fleet token create --devices FILE`: a token for each of thousands of devices, restartable.

A token is in the output, durably, before the next one is made; one that cannot be written is revoked. Each request
carries an idempotency key of the batch and the device, and the batch's id is kept beside the output until it is
complete: a token whose answer or line was lost in a crash is found by the next run, revoked, and made again.
"""

import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from fleet.cli.errors import EXIT_FAILED, CliError, attempting
from fleet.cli.interrupts import noting_interrupts
from fleet.cli.output import Row, print_value
from fleet.cli.output_file import MODE_SECRET, write_file
from fleet.client.client import Client
from fleet.client.tokens import delivered_token, revoke_if_valid
from fleet.domain.device import device_id
from fleet.domain.errors import FleetError, Invalid, Unauthenticated, Unavailable

PROGRESS_EVERY_SECONDS = 2.0
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
        batch = _Batch() if out is None else _batch_at(client, out)
        todo = [each for each in ids if each not in batch.done]
        with noting_interrupts() as interrupts:
            requests = [({"device": each, **terms}, f"{batch.id}-{each}") for each in todo]
            _make_all(client, requests, _writer(out, output, counts), counts, interrupts)
        left = len(todo) - counts.made - counts.failed
        if output == "json" and out is None:
            click.echo("]" if counts.made else "[]")
        if batch.file is not None and not left and not counts.failed:
            batch.file.unlink(missing_ok=True)
    if out is not None:
        skipped = len(ids) - len(todo)
        value = {"file": str(out), "made": counts.made, "skipped": skipped, "failed": counts.failed, "left": left}
        print_value(value, output)
    if left:
        click.echo(f"Interrupted: {left} devices are left. Run it again for the rest.", err=True)
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
    shown_at = time.monotonic()
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
            CliError(f"making a token for device '{body['device']}'", error.message, error.advice).show()
            counts.failed += 1
        if time.monotonic() - shown_at >= PROGRESS_EVERY_SECONDS:
            shown_at = time.monotonic()
            click.echo(f"{number} of {len(requests)}", err=True)


def _writer(out: Path | None, output: str, counts: _Counts) -> Callable[[str, Row], None]:
    """What writes one token of a device, so that it is there when this returns."""

    def to_file(device: str, made: Row) -> None:
        assert out is not None  # noqa: S101
        descriptor = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT, MODE_SECRET)
        try:
            os.write(descriptor, f"{device},{made['token']}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def to_terminal(device: str, made: Row) -> None:
        if output == "json":
            value = {"id": made["id"], "device": device, "token": made["token"], "expires_at": made["expires_at"]}
            click.echo(("[" if counts.made == 0 else ",\n ") + json.dumps(value), nl=False)
        else:
            click.echo(f"{device},{made['token']}")

    return to_terminal if out is None else to_file


@dataclass(frozen=True, slots=True)
class _Batch:
    """One run, or several that follow one another after a crash."""

    id: str = field(default_factory=lambda: secrets.token_hex(16))
    done: frozenset[str] = frozenset()
    """Devices whose token is in the output."""
    file: Path | None = None
    """Where the id is kept until the batch is complete."""


def _batch_at(client: Client, out: Path) -> _Batch:
    """The batch that writes into `out`: the one that was cut off there, or a new one.

    Raises: Invalid (`bad-output`): it holds something else. OSError.
    """
    if out.is_symlink():
        raise Invalid("bad-output", f"{out} is a symbolic link.", "Name another file.")
    done = _resumed(client, out) if out.exists() else frozenset()
    file = out.with_name(f".{out.name}.batch")
    try:
        id_text = file.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        id_text = secrets.token_hex(16)
        write_file(file, id_text.encode(), secret=True)
    if not _BATCH_ID.fullmatch(id_text):
        raise Invalid("bad-output", f"{file} is not the state of a batch of tokens.", "Remove it.")
    return _Batch(id_text, done, file)


def _resumed(client: Client, out: Path) -> frozenset[str]:
    """Devices with a token in `out`. A last line that was cut off is removed, and its token revoked."""
    data = _read(out)
    whole, newline, cut_off = data.rpartition(b"\n")
    lines = [_LINE.fullmatch(line) for line in whole.splitlines()]
    if not all(lines) or (cut_off and not _CUT_OFF.match(cut_off) and len(cut_off) > 80):
        raise Invalid("bad-output", f"{out} holds something else than DEVICE_ID,TOKEN lines.", "Name another file.")
    if cut_off:
        found = _CUT_OFF.match(cut_off)
        if found is not None:
            revoke_if_valid(client, found[1].decode())
        os.truncate(out, len(whole) + len(newline))
    return frozenset(line[1].decode(errors="replace") for line in lines if line is not None)


def _ids_in(file: Path) -> list[str]:
    """Device ids, each once. Empty lines, and those that start with #, are skipped.

    Raises: Invalid (`bad-device-id`): with the line. OSError.
    """
    data = sys.stdin.buffer.read(FILE_SIZE_MAX + 1) if str(file) == "-" else _read(file)
    ids: dict[str, None] = {}
    for number, line in enumerate(data.decode("utf-8", "backslashreplace").splitlines(), 1):
        text = line.strip()
        if text and not text.startswith("#"):
            try:
                ids[device_id(text)] = None
            except Invalid as error:
                raise Invalid(error.code, f"Line {number}: {error.message}", error.advice) from None
    return list(ids)


def _read(file: Path) -> bytes:
    with file.open("rb") as opened:
        data = opened.read(FILE_SIZE_MAX + 1)
    if len(data) > FILE_SIZE_MAX:
        raise Invalid("file-too-large", f"{file} is larger than {FILE_SIZE_MAX >> 20} MiB.")
    return data
