"""`fleet device`: register devices, look them up, put them out."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from fleet.cli.errors import attempting
from fleet.cli.home import OPERATOR, home_option, opened, run, utc_now
from fleet.cli.output import output_option, print_rows, print_value
from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.device import Device, DeviceFilter, DeviceState, Place
from fleet.domain.errors import NotFound
from fleet.services import inventory, revocation

COLUMNS = ("id", "model", "state", "hardware_serial", "created_at")

_reason_option = click.option("--reason", default="", metavar="TEXT", help="Why, for the audit.")


@click.group()
def device() -> None:
    """Devices: register them, look them up, suspend and revoke them."""


@device.command()
@home_option
@click.argument("device_id")
@click.option("--model", required=True, help="The kind of device; see: fleet model list")
@click.option("--serial", "hardware_serial", default="", help="The maker's serial number, for its certificates.")
@output_option
def add(home: Path, device_id: str, model: str, hardware_serial: str, output: str) -> None:
    """Register DEVICE_ID, so that it can be given a token or be provisioned."""

    async def work() -> Device:
        async with opened(home) as fleet:
            return await inventory.add_device(
                fleet.registry, device_id, model, hardware_serial=hardware_serial, actor=OPERATOR, now=utc_now()
            )

    with attempting(f"adding device '{device_id}'"):
        added = run(work())
    print_value(_shown(added), output)


@device.command(name="list")
@home_option
@click.option("--model", help="Only devices of this model.")
@click.option("--state", type=click.Choice([s.value for s in DeviceState]), help="Only devices in this state.")
@click.option("--after", default="", metavar="ID", help="Start behind this id.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="At most so many.")
@output_option
def list_(home: Path, model: str | None, state: str | None, after: str, limit: int, output: str) -> None:
    """List devices, by id."""
    where = DeviceFilter(model=model, state=DeviceState(state) if state else None)

    async def work() -> list[Device]:
        async with opened(home) as fleet:
            return await fleet.registry.devices(where, after=Place(after), limit=limit)

    with attempting("listing the devices"):
        found = run(work())
    print_rows(COLUMNS, [tuple(_shown(d).values()) for d in found], output)
    if len(found) == limit:
        click.echo(f"There may be more: --after {found[-1].id}", err=True)


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
@home_option
@click.argument("device_id")
@_reason_option
@output_option
def suspend(home: Path, device_id: str, reason: str, output: str) -> None:
    """Refuse DEVICE_ID everywhere until it is resumed; a live session ends at once."""
    _move("suspending", revocation.suspend, home, device_id, reason, output)


@device.command()
@home_option
@click.argument("device_id")
@_reason_option
@output_option
def resume(home: Path, device_id: str, reason: str, output: str) -> None:
    """Let the suspended DEVICE_ID in again."""
    _move("resuming", revocation.resume, home, device_id, reason, output)


@device.command()
@home_option
@click.argument("device_id")
@_reason_option
@output_option
def revoke(home: Path, device_id: str, reason: str, output: str) -> None:
    """Put DEVICE_ID out for good: its certificates are revoked, its live session ends at once.

    There is no way back: hardware that is to serve again is registered under a new id. To shut a device out for a
    while, suspend it.
    """
    _move("revoking", revocation.revoke, home, device_id, reason, output)


@device.command()
@home_option
@click.argument("device_id")
@_reason_option
@output_option
def retire(home: Path, device_id: str, reason: str, output: str) -> None:
    """Take DEVICE_ID out of service in good order, for good."""
    _move("retiring", revocation.retire, home, device_id, reason, output)


def _move(
    doing: str, change: Callable[..., Awaitable[Device]], home: Path, device_id: str, reason: str, output: str
) -> None:
    async def work() -> Device:
        async with opened(home) as fleet:
            return await change(fleet.registry, device_id, actor=OPERATOR, reason=reason, now=utc_now())

    with attempting(f"{doing} device '{device_id}'"):
        moved = run(work())
    print_value(_shown(moved), output)


def _shown(d: Device) -> dict[str, object]:
    return {
        "id": d.id,
        "model": d.model,
        "state": d.state,
        "hardware_serial": d.hardware_serial,
        "created_at": d.created_at,
    }
