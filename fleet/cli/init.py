"""`fleet init`: a new home."""

import shlex
from pathlib import Path

import click

from fleet.cli.at_home import at_home_only
from fleet.cli.errors import attempting
from fleet.cli.home import run, utc_now
from fleet.cli.output import output_option, print_value
from fleet.cli.parameters import Checked
from fleet.config.addresses import Address, Database, parse_database
from fleet.config.settings import Settings
from fleet.home.creation import create_home

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@click.command()
@at_home_only("a home is made in a folder of this machine")
@click.argument("home", type=click.Path(path_type=Path), envvar="FLEET_HOME")
@click.option("--name", default="fleet", show_default=True, help="The fleet's name, shown in its CAs' subjects.")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="H",
    help="A DNS name or IP address that devices will use; may be repeated. localhost is always in. "
    "With one, the server listens on all interfaces; without, on loopback.",
)
@click.option(
    "--database",
    type=Checked("URL", parse_database),
    help="PostgreSQL instead of SQLite: postgresql://USER@HOST[:PORT]/DATABASE, without a password; "
    "that comes from PGPASSWORD or ~/.pgpass.",
)
@click.option(
    "--database-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A file, mode 600, that holds the URL; this one may hold a password.",
)
@output_option
def init(
    home: Path,
    name: str,
    hosts: tuple[str, ...],
    database: Database | None,
    database_file: Path | None,
    output: str,
) -> None:
    """Make a fleet's home in the folder HOME.

    It gets settings (fleet.toml, commented), a root CA and an issuing CA, a server certificate, and an empty registry.
    A folder that holds anything is refused and left as it is.

    With PostgreSQL several nodes serve one fleet: make the home on one of them, and copy it to the others.

    \b
    Examples:
      fleet init ./home --name acme --host iot.acme.example
      fleet init ./home --database postgresql://fleet@db.acme.example/fleet?sslmode=verify-full
    """
    if database is not None and database_file is not None:
        raise click.UsageError("Give --database or --database-file, not both.")
    if database_file is not None:
        database = Database(file=str(database_file.absolute()))
    if not name.strip():
        raise click.UsageError("--name must not be empty.")
    listen = "0.0.0.0" if hosts else "127.0.0.1"  # noqa: S104 - an operator who names hosts means to be reached
    settings = Settings(
        name=name,
        hosts=tuple(dict.fromkeys((*LOOPBACK, *hosts))),
        est=Address(listen, 8443),
        mqtt=Address(listen, 8883),
        http=Address(listen, 8444),
        database=database or Database(),
    )
    with attempting(f"making a home in '{home}'"):
        made = run(create_home(home.absolute(), settings, utc_now()))
    print_value(
        {
            "home": str(made.path),
            "name": name,
            "hosts": list(settings.hosts),
            "database": str(settings.database),
            "ca_file": str(made.root_certificate),
        },
        output,
    )
    if output == "table":
        home_word = shlex.quote(str(home))
        click.echo(f"\nNext: fleet serve --home {home_word}\nKeep {made.root_key} safe, best offline.", err=True)
