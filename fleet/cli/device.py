"""`fleet device`: register devices, look them up, put them out."""

import click

from fleet.cli.desk import Desk, fleet_option
from fleet.cli.errors import attempting
from fleet.cli.output import output_option, print_rows, print_value
from fleet.domain.device import Device, DeviceFilter, DeviceState, Place

COLUMNS = ("id", "model", "state", "hardware_serial", "created_at")

_reason_option = click.option("--reason", default="", metavar="TEXT", help="Why, for the audit.")


@click.group()
def device() -> None:
    """Devices: register them, look them up, suspend and revoke them."""


@device.command()
@fleet_option
@click.argument("device_id")
@click.option("--model", required=True, help="The kind of device; see: fleet model list")
@click.option("--serial", "hardware_serial", default="", help="The maker's serial number, for its certificates.")
@output_option
def add(desk: Desk, device_id: str, model: str, hardware_serial: str, output: str) -> None:
    """Register DEVICE_ID, so that it can be given a token or be provisioned."""
    with attempting(f"adding device '{device_id}'"):
        added = desk.add_device(device_id, model, hardware_serial)
    print_value(_shown(added), output)


@device.command(name="list")
@fleet_option
@click.option("--model", help="Only devices of this model.")
@click.option("--state", type=click.Choice([s.value for s in DeviceState]), help="Only devices in this state.")
@click.option("--after", default="", metavar="ID", help="Start behind this id.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="At most so many.")
@output_option
def list_(desk: Desk, model: str | None, state: str | None, after: str, limit: int, output: str) -> None:
    """List devices, by id."""
    where = DeviceFilter(model=model, state=DeviceState(state) if state else None)
    with attempting("listing the devices"):
        found = desk.devices(where, Place(after), limit)
    print_rows(COLUMNS, [tuple(_shown(d).values()) for d in found], output)
    if len(found) == limit:
        click.echo(f"There may be more: --after {found[-1].id}", err=True)


@device.command()
@fleet_option
@click.argument("device_id")
@output_option
def show(desk: Desk, device_id: str, output: str) -> None:
    """Show DEVICE_ID with its certificates, oldest first."""
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
@fleet_option
@click.argument("device_id")
@_reason_option
@output_option
def suspend(desk: Desk, device_id: str, reason: str, output: str) -> None:
    """Refuse DEVICE_ID everywhere until it is resumed; a live session ends at once."""
    _move("suspend", "suspending", desk, device_id, reason, output)


@device.command()
@fleet_option
@click.argument("device_id")
@_reason_option
@output_option
def resume(desk: Desk, device_id: str, reason: str, output: str) -> None:
    """Let the suspended DEVICE_ID in again."""
    _move("resume", "resuming", desk, device_id, reason, output)


@device.command()
@fleet_option
@click.argument("device_id")
@_reason_option
@output_option
def revoke(desk: Desk, device_id: str, reason: str, output: str) -> None:
    """Put DEVICE_ID out for good: its certificates are revoked, its live session ends at once.

    There is no way back: hardware that is to serve again is registered under a new id. To shut a device out for a
    while, suspend it.
    """
    _move("revoke", "revoking", desk, device_id, reason, output)


@device.command()
@fleet_option
@click.argument("device_id")
@_reason_option
@output_option
def retire(desk: Desk, device_id: str, reason: str, output: str) -> None:
    """Take DEVICE_ID out of service in good order, for good."""
    _move("retire", "retiring", desk, device_id, reason, output)


def _move(verb: str, doing: str, desk: Desk, device_id: str, reason: str, output: str) -> None:
    with attempting(f"{doing} device '{device_id}'"):
        moved = desk.move_device(verb, device_id, reason)
    print_value(_shown(moved), output)


def _shown(d: Device) -> dict[str, object]:
    return {
        "id": d.id,
        "model": d.model,
        "state": d.state,
        "hardware_serial": d.hardware_serial,
        "created_at": d.created_at,
    }
