"""`fleet device`: register devices, look them up, tag them, put them out."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from fleet.cli.bulk import Many, act_by_filter, one_or_many
from fleet.cli.errors import attempting
from fleet.cli.home import OPERATOR, home_option, opened, run, utc_now
from fleet.cli.output import output_option, print_rows, print_value
from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.device import Device, DeviceFilter, DeviceState, place_of
from fleet.domain.device_filter import parse_place, parse_time, place_text
from fleet.domain.errors import NotFound
from fleet.domain.tags import Retag, parse_tag
from fleet.services import bulk, inventory, revocation, tagging

COLUMNS = ("id", "model", "state", "hardware_serial", "created_at", "expires_at", "tags", "groups")


@click.group()
def device() -> None:
    """Devices: register them, look them up, suspend and revoke them."""


@device.command()
@home_option
@click.argument("device_id")
@click.option("--model", required=True, help="The kind of device; see: fleet model list")
@click.option("--serial", "hardware_serial", default="", help="The maker's serial number, for its certificates.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A label to find it by; may be repeated.")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="A group that it is in; may be repeated.")
@output_option
def add(
    home: Path,
    device_id: str,
    model: str,
    hardware_serial: str,
    tags: tuple[str, ...],
    groups: tuple[str, ...],
    output: str,
) -> None:
    """Register DEVICE_ID, so that it can be given a token or be provisioned."""

    async def work() -> Device:
        async with opened(home) as fleet:
            return await inventory.add_device(
                fleet.registry,
                device_id,
                model,
                hardware_serial=hardware_serial,
                tags=tuple(map(parse_tag, tags)),
                groups=groups,
                actor=OPERATOR,
                now=utc_now(),
            )

    with attempting(f"adding device '{device_id}'"):
        added = run(work())
    print_value(_shown(added), output)


@device.command(name="list")
@home_option
@click.option("--model", help="Only devices of this model.")
@click.option("--state", type=click.Choice([s.value for s in DeviceState]), help="Only devices in this state.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Only devices with this tag; may be repeated.")
@click.option("--group", metavar="NAME", help="Only devices in this group.")
@click.option(
    "--expires-before",
    metavar="TIME",
    help="Only devices in service whose newest certificate ends before then, the soonest first: 30d or 2026-12-01.",
)
@click.option("--after", default="", metavar="PLACE", help="Start behind this one, as the last page named it.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="At most so many.")
@output_option
def list_(
    home: Path,
    model: str | None,
    state: str | None,
    tags: tuple[str, ...],
    group: str | None,
    expires_before: str | None,
    after: str,
    limit: int,
    output: str,
) -> None:
    """List devices: by id, or by the end of their certificates with --expires-before."""

    async def work() -> list[Device]:
        async with opened(home) as fleet:
            return await fleet.registry.devices(where, after=parse_place(after, where), limit=limit)

    with attempting("listing the devices"):
        where = DeviceFilter(
            model=model,
            state=DeviceState(state) if state else None,
            tags=tuple(sorted(set(map(parse_tag, tags)))),
            group=group,
            expires_before=parse_time(expires_before, utc_now()) if expires_before else None,
        )
        found = run(work())
    print_rows(COLUMNS, [tuple(_shown(d).values()) for d in found], output)
    if len(found) == limit:
        click.echo(f"There may be more: --after {place_text(place_of(found[-1], where))}", err=True)


@device.command()
@home_option
@click.argument("device_id")
@output_option
def show(home: Path, device_id: str, output: str) -> None:
    """Show DEVICE_ID with its certificates, oldest first."""

    async def work() -> tuple[Device, list[Credential]]:
        async with opened(home) as fleet:
            found = await fleet.registry.device(device_id)
            if found is None:
                raise NotFound("no-such-device", f"There is no device {device_id!r}.", "See: fleet device list")
            return found, await fleet.registry.credentials(device_id)

    with attempting(f"showing device '{device_id}'"):
        found, credentials = run(work())
    certificates = [
        {
            "serial": c.serial,
            "state": c.state,
            "not_before": c.not_before,
            "not_after": c.not_after,
            "sha256": c.fingerprint,
        }
        for c in credentials
        if c.kind is CredentialKind.DEVICE
    ]
    print_value({**_shown(found), "certificates": certificates}, output)


@device.command()
@one_or_many
def suspend(device_id: str | None, reason: str, many: Many) -> None:
    """Refuse DEVICE_ID, or every device of --filter, until it is resumed; a live session ends at once."""
    _move("suspend", "suspending", revocation.suspend, device_id, reason, many)


@device.command()
@one_or_many
def resume(device_id: str | None, reason: str, many: Many) -> None:
    """Let the suspended DEVICE_ID, or every suspended device of --filter, in again."""
    _move("resume", "resuming", revocation.resume, device_id, reason, many)


@device.command()
@one_or_many
def revoke(device_id: str | None, reason: str, many: Many) -> None:
    """Put DEVICE_ID, or every device of --filter, out for good: certificates are revoked, live sessions end at once.

    There is no way back: hardware that is to serve again is registered under a new id. To shut a device out for a
    while, suspend it.
    """
    _move("revoke", "revoking", revocation.revoke, device_id, reason, many)


@device.command()
@one_or_many
def retire(device_id: str | None, reason: str, many: Many) -> None:
    """Take DEVICE_ID, or every device of --filter, out of service in good order, for good."""
    _move("retire", "retiring", revocation.retire, device_id, reason, many)


def _move(
    verb: str, doing: str, change: Callable[..., Awaitable[Device]], device_id: str | None, reason: str, many: Many
) -> None:
    if device_id is None:
        with attempting(f"{doing} devices"):
            act = bulk.Move(verb, OPERATOR, reason, bulk.new_bulk_id(), utc_now)
        act_by_filter(many, doing, act)
        return

    async def work() -> Device:
        async with opened(many.home) as fleet:
            return await change(fleet.registry, device_id, actor=OPERATOR, reason=reason, now=utc_now())

    with attempting(f"{doing} device '{device_id}'"):
        moved = run(work())
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
    reason: str,
    many: Many,
) -> None:
    """Set tags of DEVICE_ID, or of every device of --filter; put it into groups and take it out of them.

    \b
    Examples:
      fleet device tag cam-7 lot=L7 site=Oslo --remove old --group pilot --ungroup canary
      fleet device tag --filter 'lot=L7 and state=active' --group recall
    """
    pairs = words if device_id is None else words[1:]
    what = f"device '{device_id}'" if device_id is not None else "devices"
    with attempting(f"tagging {what}"):
        retag = Retag(tuple(map(parse_tag, pairs)), remove, join, leave)
        act = bulk.Tagging(retag, OPERATOR, reason, bulk.new_bulk_id(), utc_now)
    if device_id is None:
        act_by_filter(many, "tagging", act)
        return

    async def work() -> Device:
        async with opened(many.home) as fleet:
            return await tagging.tag_device(
                fleet.registry, device_id, retag, actor=OPERATOR, reason=reason, now=utc_now()
            )

    with attempting(f"tagging {what}"):
        tagged = run(work())
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
