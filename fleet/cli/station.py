"""`fleet station`: factory stations, and the certificates by which they enroll devices."""

import os
from datetime import timedelta
from pathlib import Path

import click
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.keys import generate_key, write_key
from fleet.cli.desk import Desk, fleet_option
from fleet.cli.errors import CliError, attempting
from fleet.cli.home import utc_now
from fleet.cli.issued import Issued, request_for
from fleet.cli.output import output_option, print_rows, print_value
from fleet.cli.output_file import write_file
from fleet.domain.device import plain_name
from fleet.domain.errors import Conflict
from fleet.services import inventory

CERTIFICATE, KEY, CA = "station.pem", "station.key", "ca.pem"


@click.group()
def station() -> None:
    """Factory stations: registration authorities for the models that they build."""


_quota = click.option(
    "--quota",
    type=click.IntRange(0, inventory.STATION_QUOTA_MAX),
    default=0,
    show_default=True,
    help="How many certificates it may earn a day (UTC); 0: as many as it likes.",
)


@station.command()
@fleet_option
@click.argument("name")
@click.option("--model", "models", multiple=True, required=True, help="A model that it provisions; may be repeated.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for its files.")
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="Life of its certificate.")
@_quota
@output_option
def add(desk: Desk, name: str, models: tuple[str, ...], out: Path, days: int, quota: int, output: str) -> None:
    """Add the station NAME and write what it needs into a folder.

    \b
    station.pem  its certificate and the issuing CA
    station.key  its key, made on this machine and kept nowhere else; mode 0600
    ca.pem       the root that it trusts

    \b
    Example:
      fleet station add line-1 --model pump --out ./station
    """
    with attempting(f"adding station '{name}'"):
        issued = _make_files(desk, name, models, out, timedelta(days=days), quota)
    print_value(
        {
            "name": name,
            "models": models,
            "quota": quota or None,
            "serial": issued.serial,
            "not_after": issued.not_after,
            "certificate": str(out / CERTIFICATE),
            "key": str(out / KEY),
            "ca_file": str(out / CA),
        },
        output,
    )


def _make_files(desk: Desk, name: str, models: tuple[str, ...], out: Path, lifetime: timedelta, quota: int) -> Issued:
    plain_name(name, "station")
    root = next(each.certificate for each in desk.authorities() if each.role == "root")
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in (CERTIFICATE, KEY, CA):
        if os.path.lexists(out / file):  # a link that leads nowhere yet is somebody's plan
            raise Conflict("file-exists", f"{out / file} exists; nothing was changed.", "Name another folder.")
    key = generate_key()
    write_key(out / KEY, key)
    try:
        issued = desk.add_station(name, models, request_for(name, key), lifetime, quota)
    except BaseException:
        (out / KEY).unlink()  # it would open nothing
        raise
    try:
        write_file(out / CA, root.public_bytes(Encoding.PEM), secret=False)
        chain = b"".join(each.public_bytes(Encoding.PEM) for each in issued.chain)
        write_file(out / CERTIFICATE, chain, secret=False)
    except OSError as error:
        raise CliError(
            f"writing the files of station '{name}'",
            f"it is registered, but {error.strerror} ({error.filename})",
            f"Run `fleet station revoke {name}` and add a station of another name",
        ) from error
    return issued


@station.command(name="list")
@fleet_option
@output_option
def list_(desk: Desk, output: str) -> None:
    """List the stations with the state of their certificates."""

    with attempting("listing the stations"):
        found = desk.stations()
    now = utc_now()
    rows = [
        (
            s.name,
            s.models,
            c.state if c else None,
            c.not_after if c else None,
            s.quota or None,
            s.used_on(now) if s.quota else None,
            s.created_at,
        )
        for s, c in found
    ]
    print_rows(("name", "models", "certificate", "not_after", "quota", "used_today", "created_at"), rows, output)


@station.command(name="set")
@fleet_option
@click.argument("name")
@_quota
@output_option
def set_(desk: Desk, name: str, quota: int, output: str) -> None:
    """Change how many certificates the station NAME may earn a day.

    \b
    Example:
      fleet station set line-1 --quota 2000
    """
    with attempting(f"changing station '{name}'"):
        changed = desk.set_station_quota(name, quota)
    value = {"name": name, "quota": changed.quota or None, "used_today": changed.used_on(utc_now())}
    print_value(value, output)


@station.command()
@fleet_option
@click.argument("name")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the audit.")
@output_option
def revoke(desk: Desk, name: str, reason: str, output: str) -> None:
    """Revoke the certificate of the station NAME. Devices that it provisioned stay; revoke them by themselves."""

    with attempting(f"revoking station '{name}'"):
        desk.revoke_station(name, reason)
    print_value({"name": name, "certificate": "revoked"}, output)
