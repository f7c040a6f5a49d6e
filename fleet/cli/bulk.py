"""Acts on one device or on every device of a filter: the options, the confirmation, the progress, the summary."""

import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from fleet.cli.desk import Desk, Order, Went, fleet_option
from fleet.cli.errors import EXIT_FAILED, CliError, attempting
from fleet.cli.home import utc_now
from fleet.cli.output import output_option, print_rows, print_value
from fleet.domain.device import Device
from fleet.domain.device_filter import parse_filter
from fleet.domain.tags import Retag
from fleet.services.bulk import Tally, new_bulk_id
from fleet.services.revocation import checked_reason

PROGRESS_EVERY_SECONDS = 0.5
FAILURES_SHOWN_MAX = 20
DRY_COLUMNS = ("id", "model", "state", "expires_at", "tags", "groups")


@dataclass(frozen=True, slots=True)
class Many:
    """What the options of `one_or_many` say."""

    desk: Desk
    output: str
    reason: str
    text: str | None
    is_confirmed: bool
    count: int | None
    is_dry: bool


def one_or_many(command: Callable[..., None]) -> Callable[..., object]:
    """Give a command DEVICE_ID or `--filter`, passed as `device_id` (None with a filter) and `many`.

    A command with an argument `words` of its own finds the device id in front of them.
    """

    @functools.wraps(command)
    def either(
        desk: Desk,
        output: str,
        reason: str,
        text: str | None,
        yes: bool,
        count: int | None,
        dry_run: bool,
        **rest: Any,
    ) -> None:
        first = rest["words"][0] if rest.get("words") else None
        device_id = rest.pop("device_id", None) or (first if text is None else None)
        if (device_id is None) == (text is None):
            raise click.UsageError("Give a DEVICE_ID or --filter, one of the two.")
        if text is None and (yes or dry_run or count is not None):
            raise click.UsageError("--yes, --count and --dry-run go with --filter.")
        command(device_id=device_id, many=Many(desk, output, reason, text, yes, count, dry_run), **rest)

    wrapped: Callable[..., object] = either
    for option in (output_option, *reversed(_OPTIONS), fleet_option):
        wrapped = option(wrapped)
    if not any(getattr(p, "name", "") == "words" for p in getattr(command, "__click_params__", [])):
        wrapped = click.argument("device_id", required=False)(wrapped)
    return wrapped


_OPTIONS: tuple[Callable[[Callable[..., object]], Callable[..., object]], ...] = (
    click.option("--reason", default="", metavar="TEXT", help="Why, for the audit."),
    click.option(
        "--filter",
        "text",
        metavar="FILTER",
        help="Every device of which all is true: 'model=cam2 and lot=L7 and state=active and group=pilot and "
        "expires<30d'. Other keys are tags.",
    ),
    click.option("--yes", is_flag=True, help="With --filter: do not ask, however many they are."),
    click.option(
        "--count", type=click.IntRange(0), metavar="N", help="With --filter: do not ask, but refuse unless N match."
    ),
    click.option("--dry-run", is_flag=True, help="With --filter: list the devices and change nothing."),
)


def act_by_filter(many: Many, doing: str, act: str, retag: Retag | None = None) -> None:
    """Do `act` to every device of the filter, once it has been confirmed. Exit 1 when it failed on any."""
    assert many.text is not None  # noqa: S101  one_or_many has seen to it
    with attempting(f"{doing} devices"):
        checked_reason(many.reason)
        order = Order(many.text, parse_filter(many.text, utc_now()), act, retag, many.reason)
        if many.is_dry:
            _list(many, many.desk.all_devices(order.where))
            return
        count = many.desk.count_devices(order)
        _confirm(many, doing, count)
        if count == 0:
            click.echo("No device matches.", err=True)
            went = Went(new_bulk_id(), Tally(), is_interrupted=False)
        else:
            progress = _Progress(count)
            went = many.desk.act_on_many(order, count, progress.heard)
            progress.last(went.tally)
    _report(many, doing, count, went)
    if went.tally.failed or went.is_interrupted:
        sys.exit(EXIT_FAILED)


class _Progress:
    """A line on standard error now and then, the first at once."""

    def __init__(self, count: int) -> None:
        self._count, self._shown = count, 0.0

    def heard(self, tally: Tally) -> None:
        if time.monotonic() - self._shown >= PROGRESS_EVERY_SECONDS:
            self.last(tally)

    def last(self, tally: Tally) -> None:
        self._shown = time.monotonic()
        click.echo(f"{tally.seen} of {self._count}", err=True)


def _list(many: Many, devices: list[Device]) -> None:
    rows = [(d.id, d.model, d.state, d.expires_at, dict(d.tags), d.groups) for d in devices]
    print_rows(DRY_COLUMNS, rows, many.output)
    click.echo(f"{len(rows)} {'device matches' if len(rows) == 1 else 'devices match'}; nothing was changed.", err=True)


def _confirm(many: Many, doing: str, count: int) -> None:
    if many.count is not None and many.count != count:
        look = "Look at them with --dry-run"
        raise CliError(f"{doing} devices", f"{count} match, not {many.count}; nothing was changed", look)
    if many.count is not None or many.is_confirmed or count == 0:
        return
    click.echo(f"{doing.capitalize()} {count} devices of: {many.text}", err=True)
    try:
        typed: str = click.prompt("Type their number to go on", err=True)
    except click.Abort:
        look = f"Confirm with --count {count}, or look at them with --dry-run"
        raise CliError(f"{doing} devices", "it was not confirmed; nothing was changed", look) from None
    if typed.strip() != str(count):
        raise CliError(f"{doing} devices", f"{typed[:20]!r} is not {count}; nothing was changed")


def _report(many: Many, doing: str, count: int, went: Went) -> None:
    tally = went.tally
    for outcome in tally.failed[:FAILURES_SHOWN_MAX]:
        click.echo(f"Not done: {outcome.device_id}: {outcome.why}", err=True)
    if len(tally.failed) > FAILURES_SHOWN_MAX:
        click.echo(f"Not done: {len(tally.failed) - FAILURES_SHOWN_MAX} more; -o json lists them all.", err=True)
    failed: list[object] = [{"id": o.device_id, "code": o.code, "why": o.why} for o in tally.failed]
    value: dict[str, object] = {
        "bulk": went.bulk,
        "matched": count,
        "done": tally.done,
        "skipped": tally.skipped,
        "failed": failed if many.output == "json" else len(failed),
        "interrupted": went.is_interrupted,
    }
    print_value(value, many.output)
    if went.is_interrupted:
        click.echo(f"Interrupted while {doing}: {tally.seen} of {count}. Run it again for the rest.", err=True)
    elif tally.failed:
        click.echo("Look at those again: they were changed meanwhile, or the registry failed. Run it again.", err=True)
