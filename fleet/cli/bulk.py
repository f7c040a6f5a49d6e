"""Acts on devices named one by one, or on every device of a filter: options, confirmation, progress, summary.

An act by filter goes in steps over the API (POST /v1/bulk), and can be stopped between two of them.
"""

import enum
import functools
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import click
from msgspec import Struct, field

from fleet.cli.errors import CliError, attempting
from fleet.cli.long_work import Progress, noting_interrupts
from fleet.cli.options import client_option, reason_option
from fleet.cli.output import Seen, output_option, print_rows, print_value
from fleet.cli.parameters import DEVICE_ID, FILTER, TAG, wrong_use
from fleet.client.client import Client, bad_answer
from fleet.config.streams import EXIT_FAILED
from fleet.domain.device import DeviceFilter
from fleet.domain.device_filter import parse_filter
from fleet.services.notifying import Message

PATH = "/v1/bulk"
PROGRESS_EVERY_SECONDS = 0.5
FAILURES_SHOWN_MAX = 20
IDLE_STEPS_MAX = 10  # one after the other
DRY_COLUMNS = ("id", "model", "state", "expires_at", "tags", "groups")


class Selection(Struct, frozen=True):
    """What the arguments and options of `ids_or_filter` say."""

    client: Client
    output: str
    reason: str
    ids: tuple[str, ...]
    tags: tuple[tuple[str, str], ...]
    name: str
    """What comes after the ids in `notify`; "" in the others."""
    text: str | None
    """The filter as it was written; None with ids."""
    is_confirmed: bool
    count: int | None
    is_dry: bool


class Rest(enum.Enum):
    """What comes after the ids, as the help says it."""

    NOTHING = ""
    TAGS = " [KEY=VALUE]..."
    NAME = " NAME"


def ids_or_filter(rest: Rest = Rest.NOTHING) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Give a command DEVICE_ID... or `--filter`, and `rest` behind, passed as `selection`."""
    return functools.partial(_with_selection, rest)


def _with_selection(rest: Rest, command: Callable[..., object]) -> Callable[..., object]:
    takes_tags = rest is Rest.TAGS

    @functools.wraps(command)
    def either(words: tuple[str, ...], **given: Any) -> None:
        words, name = _and_name(words, given["text"] is not None) if rest is Rest.NAME else (words, "")
        first_tag = next((n for n, word in enumerate(words) if "=" in word), len(words)) if takes_tags else len(words)
        ids = tuple(DEVICE_ID.convert(word, None, None) for word in words[:first_tag])
        tags = tuple(TAG.convert(word, None, None) for word in words[first_tag:])
        said = {name: given.pop(name) for name in Selection.__struct_fields__ if name in given}
        selection = Selection(ids=ids, tags=tags, name=name, **said)
        if bool(ids) == (selection.text is not None):
            raise click.UsageError("Give a DEVICE_ID or --filter, one of the two.")
        if ids and (selection.is_confirmed or selection.is_dry or selection.count is not None):
            raise click.UsageError("--yes, --count and --dry-run go with --filter.")
        command(selection=selection, **given)

    wrapped: Callable[..., object] = either
    for option in (output_option, *reversed(_OPTIONS), reason_option, client_option):
        wrapped = option(wrapped)
    metavar = f"[DEVICE_ID]...{rest.value}"
    return click.argument("words", nargs=-1, metavar=metavar, shell_complete=DEVICE_ID.shell_complete)(wrapped)


def _and_name(words: tuple[str, ...], has_filter: bool) -> tuple[tuple[str, ...], str]:
    """The ids, and the name of the message behind them. Raises: click.UsageError."""
    if not words:
        raise click.UsageError("Missing argument 'NAME'.")
    if len(words) == 1 and not has_filter:
        raise click.UsageError(
            "Missing argument 'NAME', or a device. Give a DEVICE_ID or --filter, and NAME behind it."
        )
    with wrong_use():
        return words[:-1], Message(words[-1]).name


_OPTIONS: tuple[Callable[[Callable[..., object]], Callable[..., object]], ...] = (
    click.option(
        "--filter",
        "text",
        type=FILTER,
        help="Every device that matches all terms: 'model=cam2 and lot=L7 and state=active and group=pilot and "
        "expires<30d'. Other keys are tags.",
    ),
    click.option("--yes", "is_confirmed", is_flag=True, help="With --filter: do not ask for confirmation."),
    click.option(
        "--count", type=click.IntRange(0), metavar="N", help="With --filter: do not ask, but refuse unless N match."
    ),
    click.option("--dry-run", "is_dry", is_flag=True, help="With --filter: list the devices and change nothing."),
)


class _Tally(Struct):
    """How far an act has come."""

    done: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    """Code to count: devices to which there was nothing to do."""
    failed: list[Mapping[str, str]] = field(default_factory=list)

    @property
    def seen(self) -> int:
        return self.done + sum(self.skipped.values()) + len(self.failed)

    def add(self, step: Mapping[str, Any]) -> None:
        self.done += step["done"]
        for code, number in step["skipped"].items():
            self.skipped[code] = self.skipped.get(code, 0) + number
        self.failed += step["failed"]


def act_by_filter(selection: Selection, doing: str, act: Mapping[str, object]) -> None:
    """Do `act`, as POST /v1/bulk takes it, to every device of the filter, once confirmed. Exit 1 if any failed."""
    assert selection.text is not None  # noqa: S101  `ids_or_filter` has checked it
    body = {"filter": selection.text, **act, "reason": selection.reason}
    with attempting(f"{doing} devices"):
        if selection.is_dry:
            _list(selection)
            return
        dry = selection.client.post(PATH, {**body, "dry_run": True})
        count: int = dry["matched"]
        text, is_confirmed = selection.text, selection.is_confirmed
        confirm(doing, "device", count, text, wanted=selection.count, is_confirmed=is_confirmed)
        tally, bulk, is_interrupted = _Tally(), dry["bulk"], False
        if count == 0:
            click.echo("No device matches.", err=True)
        else:
            bulk, is_interrupted = _in_steps(selection.client, body, count, tally)
    _report(selection, doing, count, bulk, tally, is_interrupted)
    if tally.failed or is_interrupted:
        sys.exit(EXIT_FAILED)


def _in_steps(client: Client, body: Mapping[str, object], count: int, tally: _Tally) -> tuple[str, bool]:
    """Its id, and whether SIGINT or SIGTERM ended it early; the step that was under way is finished."""
    progress = Progress(PROGRESS_EVERY_SECONDS)
    with noting_interrupts() as interrupts:
        progress.show(f"0 of {count}")
        step = client.post(PATH, {**body, "expected": count})
        tally.add(step)
        idle = 0
        while step["next"] is not None and not interrupts:
            progress.show(f"{tally.seen} of {count}")
            before = tally.seen
            step = client.post(PATH, {**body, "cursor": step["next"]})
            tally.add(step)
            idle = idle + 1 if tally.seen == before else 0  # a step in which time ran out is followed by another
            if idle > IDLE_STEPS_MAX or tally.seen > count:
                raise bad_answer("its steps lead nowhere")
    click.echo(f"{tally.seen} of {count}", err=True)
    return step["bulk"], step["next"] is not None


def query_of(where: DeviceFilter, kind: str | None = None) -> dict[str, object]:
    """The query of GET /v1/devices for the devices of `where`, of `kind` if that is given."""
    return {
        "model": where.model,
        "kind": kind or (where.kind.value if where.kind else None),
        "state": where.state.value if where.state else None,
        "group": where.group,
        "expires_before": where.expires_before.isoformat() if where.expires_before else None,
        "tag": [":".join(tag) for tag in where.tags],
    }


def _list(selection: Selection) -> None:
    assert selection.text is not None  # noqa: S101
    query = query_of(parse_filter(selection.text, datetime.now(UTC)))
    devices = Seen(selection.client.items("/v1/devices", **query))
    print_rows(DRY_COLUMNS, devices, selection.output)
    match = "device matches" if devices.count == 1 else "devices match"
    click.echo(f"{devices.count} {match}; nothing was changed.", err=True)


def confirm(doing: str, noun: str, count: int, text: str, *, wanted: int | None, is_confirmed: bool) -> None:
    """Have the person type how many of `noun` the filter `text` matches. Raises: CliError: it is not confirmed."""
    doing_them = f"{doing} {noun}s"
    if wanted is not None and wanted != count:
        look = "Look at them with --dry-run"
        raise CliError(doing_them, f"{count} match, not {wanted}; nothing was changed", look)
    if wanted is not None or is_confirmed or count == 0:
        return
    click.echo(f"{doing.capitalize()} {count} {noun}{'' if count == 1 else 's'} of: {text}", err=True)
    try:
        typed: str = click.prompt("Type their number to go on", err=True)
    except click.Abort:
        look = f"Confirm with --count {count}, or look at them with --dry-run"
        raise CliError(doing_them, "it was not confirmed; nothing was changed", look) from None
    if typed.strip() != str(count):
        raise CliError(doing_them, f"{typed[:20]!r} is not {count}; nothing was changed")


def _report(selection: Selection, doing: str, count: int, bulk: str, tally: _Tally, is_interrupted: bool) -> None:
    for failure in tally.failed[:FAILURES_SHOWN_MAX]:
        click.echo(f"Not done: {failure['id']}: {failure['why']} ({failure['code']})", err=True)
    if len(tally.failed) > FAILURES_SHOWN_MAX:
        click.echo(f"Not done: {len(tally.failed) - FAILURES_SHOWN_MAX} more; -o json lists them all.", err=True)
    counts = {"done": tally.done, "skipped": tally.skipped, "failed": tally.failed}
    value = {"bulk": bulk, "matched": count, **counts, "interrupted": is_interrupted}
    print_value(value, selection.output, {**value, "failed": len(tally.failed)})
    if is_interrupted:
        click.echo(f"Interrupted while {doing}: {tally.seen} of {count}. Run it again for the rest.", err=True)
    elif tally.failed:
        click.echo("Look at those again: they were changed meanwhile, or the registry failed. Run it again.", err=True)
