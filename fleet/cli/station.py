"""`fleet station`: factory stations, and the certificates they enroll devices with."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from fleet.cli.errors import attempting
from fleet.cli.key_files import Holder, KeyFiles, enroll_with_files
from fleet.cli.options import client_option, limit_option, reason_option
from fleet.cli.output import Row, output_option, print_rows, print_value
from fleet.cli.parameters import MODEL, STATION
from fleet.cli.several import print_each
from fleet.client.client import Client, path_of
from fleet.domain.credential import day_of
from fleet.services.inventory import STATION_QUOTA_MAX

COLUMNS = ("name", "models", "certificate", "not_after", "quota", "used_today", "created_at")


@click.group()
def station() -> None:
    """Factory stations: registration authorities for the models that they build."""


_quota = click.option(
    "--quota",
    type=click.IntRange(0, STATION_QUOTA_MAX),
    default=0,
    show_default=True,
    help="Maximum number of certificates a day (UTC); 0: no limit.",
)


@station.command()
@client_option
@click.argument("name", type=STATION)
@click.option("--model", "models", type=MODEL, multiple=True, required=True, help="A model it builds; may be repeated.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for its files.")
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="Certificate lifetime.")
@_quota
@output_option
def add(client: Client, name: str, models: tuple[str, ...], out: Path, days: int, quota: int, output: str) -> None:
    """Add the station NAME and write its files into a folder.

    \b
    station.pem  its certificate and the issuing CA
    station.key  its key, made on this machine and stored nowhere else; mode 0600
    ca.pem       the root CA that it trusts

    \b
    Example:
      fleet station add line-1 --model pump --out ./station
    """
    files = KeyFiles(out, "station")
    terms = {"models": list(models), "quota": quota, "lifetime_seconds": int(timedelta(days=days).total_seconds())}

    def enroll(csr: str) -> Row:
        return dict(client.post("/v1/stations", {"name": name, **terms, "csr": csr}))

    with attempting(f"adding station '{name}'"):
        _, certificate = enroll_with_files(client, Holder("station", name), files, enroll)
    print_value(
        {
            "name": name,
            "models": models,
            "quota": quota or None,
            "serial": f"{certificate.serial_number:x}",
            "not_after": certificate.not_valid_after_utc,
            "certificate": str(files.certificate),
            "key": str(files.key),
            "ca_file": str(files.ca),
        },
        output,
    )


@station.command(name="list")
@client_option
@limit_option
@output_option
def list_(client: Client, limit: int | None, output: str) -> None:
    """List the stations with the state of their certificates."""
    with attempting("listing the stations"):
        print_rows(COLUMNS, map(_with_quota, client.items("/v1/stations", limit)), output)


@station.command(name="set")
@client_option
@click.argument("name", type=STATION)
@_quota
@output_option
def set_(client: Client, name: str, quota: int, output: str) -> None:
    """Change how many certificates a day the station NAME may obtain.

    \b
    Example:
      fleet station set line-1 --quota 2000
    """
    with attempting(f"changing station '{name}'"):
        changed = _with_quota(client.patch(path_of("/v1/stations/{}", name), {"quota": quota}))
    print_value({key: changed[key] for key in ("name", "quota", "used_today")}, output)


def _with_quota(station: Row) -> dict[str, object]:
    """The API's station with its quota, None for no limit, and what was used of it on this day."""
    quota = station["quota"] or None
    # Of this day, or of the next one, in which another node's clock may be already.
    used = station["used"] if station["day"] - day_of(datetime.now(UTC)) in (0, 1) else 0
    return {**station, "quota": quota, "used_today": used if quota else None}


@station.command()
@client_option
@click.argument("names", type=STATION, nargs=-1, required=True, metavar="NAME...")
@reason_option
@output_option
def revoke(client: Client, names: tuple[str, ...], reason: str, output: str) -> None:
    """Revoke the certificates of stations. Devices that they provisioned stay; revoke them separately."""

    def revoked(name: str) -> Row:
        client.post(path_of("/v1/stations/{}/revoke", name), {"reason": reason})
        return {"name": name, "certificate": "revoked"}

    print_each(names, "revoking station '{}'", revoked, output)
