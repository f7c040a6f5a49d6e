"""`fleet device`: register devices, look them up, tag them, put them out."""

import click

from fleet.cli.bulk import Many, act_by_filter, one_or_many
from fleet.cli.desk import Desk, fleet_option
from fleet.cli.device_import import import_
from fleet.cli.errors import attempting
from fleet.cli.home import utc_now
from fleet.cli.output import output_option, print_rows, print_value
from fleet.domain.device import Device, DeviceFilter, DeviceState, place_of
from fleet.domain.device_filter import parse_filter, parse_place, parse_time, place_text
from fleet.domain.tags import Retag, checked_tags, parse_tag

COLUMNS = ("id", "model", "state", "hardware_serial", "created_at", "expires_at", "tags", "groups")


@click.group()
def device() -> None:
    """Devices: register them, look them up, tag them, suspend and revoke them."""


device.add_command(import_)


@device.command()
@fleet_option
@click.argument("device_id")
@click.option("--model", required=True, help="The kind of device; see: fleet model list")
@click.option("--serial", "hardware_serial", default="", help="The maker's serial number, for its certificates.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A label to find it by; may be repeated.")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="A group that it is in; may be repeated.")
@output_option
def add(
    desk: Desk,
    device_id: str,
    model: str,
    hardware_serial: str,
    tags: tuple[str, ...],
    groups: tuple[str, ...],
    output: str,
) -> None:
    """Register a device.

    Then DEVICE_ID can be given a token (fleet token create --device DEVICE_ID), or be provisioned by a station.

    \b
    Example:
      fleet device add cam-7 --model cam2 --tag lot=L7 --tag 'site=Oslo East' --group pilot
    """
    with attempting(f"adding device '{device_id}'"):
        labels = Retag(checked_tags(map(parse_tag, tags)), join=groups) if tags or groups else None
        added = desk.add_device(device_id, model, hardware_serial, labels)
    print_value(_shown(added), output)


@device.command(name="list")
@fleet_option
@click.option("--model", help="Only devices of this model.")
@click.option("--state", type=click.Choice([s.value for s in DeviceState]), help="Only devices in this state.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Only devices with this tag; may be repeated.")
@click.option("--group", metavar="NAME", help="Only devices in this group.")
@click.option(
    "--expires-before",
    metavar="TIME",
    help="Only devices in service whose newest certificate ends before then, the soonest first: 30d or 2026-12-01.",
)
@click.option(
    "--filter",
    "text",
    metavar="FILTER",
    help="In place of the others, as in the commands that act on many: 'model=cam2 and lot=L7 and expires<30d'.",
)
@click.option("--after", default="", metavar="PLACE", help="Start behind this one, as the last page named it.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="At most so many.")
@output_option
def list_(
    desk: Desk,
    model: str | None,
    state: str | None,
    tags: tuple[str, ...],
    group: str | None,
    expires_before: str | None,
    text: str | None,
    after: str,
    limit: int,
    output: str,
) -> None:
    """List devices.

    They come by id, or with --expires-before by the end of their certificates.

    \b
    Examples:
      fleet device list --model cam2 --state suspended --tag lot=L7
      fleet device list --expires-before 30d -o json
      fleet device list --filter 'lot=L7 and site="Oslo East"'
    """
    if text is not None and (model or state or tags or group or expires_before):
        raise click.UsageError("--filter says it all: write the others into it.")
    with attempting("listing the devices"):
        if text is not None:
            where = parse_filter(text, utc_now())
        else:
            where = DeviceFilter(
                model=model,
                state=DeviceState(state) if state else None,
                tags=tuple(sorted(set(map(parse_tag, tags)))),
                group=group,
                expires_before=parse_time(expires_before, utc_now()) if expires_before else None,
            )
        found = desk.devices(where, parse_place(after, where), limit)
    print_rows(COLUMNS, [tuple(_shown(d).values()) for d in found], output)
    if len(found) == limit:
        click.echo(f"There may be more: --after {place_text(place_of(found[-1], where))}", err=True)


@device.command()
@fleet_option
@click.argument("device_id")
@output_option
def show(desk: Desk, device_id: str, output: str) -> None:
    """Show a device with its certificates, oldest first."""
    with attempting(f"showing device '{device_id}'"):
        found, held = desk.device(device_id)
    certificates = [
        {
            "serial": c.serial,
            "state": c.state,
            "not_before": c.not_before,
            "not_after": c.not_after,
            "sha256": c.sha256,
        }
        for c in held
    ]
    print_value({**_shown(found), "certificates": certificates}, output)


@device.command()
@one_or_many
def suspend(device_id: str | None, many: Many) -> None:
    """Refuse devices until they are resumed.

    It is DEVICE_ID, or every device of --filter. Live sessions end at once; certificates stay.

    \b
    Examples:
      fleet device suspend cam-7 --reason 'being repaired'
      fleet device suspend --filter 'lot=L7 and state=active' --dry-run
    """
    _move("suspend", "suspending", device_id, many)


@device.command()
@one_or_many
def resume(device_id: str | None, many: Many) -> None:
    """Let suspended devices in again.

    It is DEVICE_ID, or every suspended device of --filter.

    \b
    Example:
      fleet device resume --filter 'lot=L7 and state=suspended' --count 12
    """
    _move("resume", "resuming", device_id, many)


@device.command()
@one_or_many
def revoke(device_id: str | None, many: Many) -> None:
    """Put devices out for good.

    It is DEVICE_ID, or every device of --filter. Certificates are revoked, live sessions end at once.

    There is no way back: hardware that is to serve again is registered under a new id. To shut a device out for a
    while, suspend it.

    \b
    Example:
      fleet device revoke cam-7 --reason lost
    """
    _move("revoke", "revoking", device_id, many)


@device.command()
@one_or_many
def retire(device_id: str | None, many: Many) -> None:
    """Take devices out of service in good order.

    It is DEVICE_ID, or every device of --filter, and for good.

    \b
    Example:
      fleet device retire --filter 'model=cam1' --dry-run
    """
    _move("retire", "retiring", device_id, many)


def _move(verb: str, doing: str, device_id: str | None, many: Many) -> None:
    if device_id is None:
        act_by_filter(many, doing, verb)
        return
    with attempting(f"{doing} device '{device_id}'"):
        moved = many.desk.move_device(verb, device_id, many.reason)
    print_value(_shown(moved), many.output)


@device.command()
@one_or_many
@click.argument("words", nargs=-1, metavar="[DEVICE_ID] [KEY=VALUE]...")
@click.option("--remove", multiple=True, metavar="KEY", help="A tag to take away; may be repeated.")
@click.option("--group", "join", multiple=True, metavar="NAME", help="A group to put it into; may be repeated.")
@click.option("--ungroup", "leave", multiple=True, metavar="NAME", help="A group to take it out of; may be repeated.")
def tag(
    words: tuple[str, ...],
    remove: tuple[str, ...],
    join: tuple[str, ...],
    leave: tuple[str, ...],
    device_id: str | None,
    many: Many,
) -> None:
    """Change tags and groups of devices.

    It is DEVICE_ID, or every device of --filter.

    \b
    Examples:
      fleet device tag cam-7 lot=L7 site=Oslo --remove old --group pilot --ungroup canary
      fleet device tag --filter 'lot=L7 and state=active' --group recall
    """
    pairs = words if device_id is None else words[1:]
    what = f"device '{device_id}'" if device_id is not None else "devices"
    with attempting(f"tagging {what}"):
        retag = Retag(tuple(map(parse_tag, pairs)), remove, join, leave)
    if device_id is None:
        act_by_filter(many, "tagging", "tag", retag)
        return
    with attempting(f"tagging {what}"):
        tagged = many.desk.tag_device(device_id, retag, many.reason)
    print_value(_shown(tagged), many.output)


def _shown(d: Device) -> dict[str, object]:
    return {
        "id": d.id,
        "model": d.model,
        "state": d.state,
        "hardware_serial": d.hardware_serial,
        "created_at": d.created_at,
        "expires_at": d.expires_at,
        "tags": dict(d.tags),
        "groups": d.groups,
    }
