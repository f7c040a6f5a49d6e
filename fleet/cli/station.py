"""`fleet station`: factory stations, and the certificates they enroll devices with."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from fleet.cli.errors import attempting
from fleet.cli.key_files import KeyFiles, enroll_with_files
from fleet.cli.options import client_option, days_option, out_option
from fleet.cli.output import Row, output_option, print_value
from fleet.cli.parameters import MODEL, STATION
from fleet.cli.records import Records, ids_of, revocation_options
from fleet.client.client import Client
from fleet.domain.credential import day_of
from fleet.services.inventory import STATION_QUOTA_MAX


@click.group()
def station() -> None:
    """Factory stations: registration authorities for the models that they build."""


def _with_quota(station: Row) -> Row:
    """The API's station with its quota, None for no limit, and what was used of it on this day."""
    quota = station["quota"] or None
    # Of this day, or of the next one, in which another node's clock may be already.
    used = station["used"] if station["day"] - day_of(datetime.now(UTC)) in (0, 1) else 0
    return {**station, "quota": quota, "used_today": used if quota else None}


COLUMNS = ("name", "models", "certificate", "not_after", "quota", "used_today", "created_at")
STATIONS = Records(station, STATION, COLUMNS, _with_quota)
STATIONS.list("List the stations with the state of their certificates.")
STATIONS.act(
    "revoke",
    """Revoke the certificates of stations.

    Devices that they provisioned stay; revoke them separately.
    """,
    {"certificate": "revoked"},
    options=revocation_options,
    argument=ids_of(STATION, "STATION..."),
)


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
@out_option
@days_option
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
    lifetime = int(timedelta(days=days).total_seconds())
    terms = {"name": name, "models": list(models), "quota": quota, "lifetime_seconds": lifetime}
    with attempting(f"adding station '{name}'"):
        _, certificate = enroll_with_files(client, "station", terms, files)
    shown = files.shown(certificate, without="pkcs12")
    print_value({"name": name, "models": models, "quota": quota or None, **shown}, output)


@station.command(name="set")
@client_option
@click.argument("name", type=STATION)
@_quota
@output_option
def set_(client: Client, name: str, quota: int, output: str) -> None:
    """Change how many certificates a day the station NAME may obtain. 0 lifts the limit, and so does leaving it out.

    \b
    Example:
      fleet station set line-1 --quota 2000
    """
    with attempting(f"changing station '{name}'"):
        changed = _with_quota(client.patch(STATIONS.path(name), {"quota": quota}))
    value = {key: changed[key] for key in ("name", "quota", "used_today")}
    print_value(value, output, {**value, "quota": value["quota"] or "no limit"})
