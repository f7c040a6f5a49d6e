"""`fleet init`: a new home."""

import asyncio
import functools
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from fleet.cli.errors import attempting
from fleet.cli.options import FILE, Checked, at_home_only
from fleet.cli.output import output_option, print_value
from fleet.config.addresses import Address, Database, is_loopback, parse_database
from fleet.config.settings import Settings
from fleet.home.creation import create_home


def database_options(text: str) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Give a command `--database`, whose help is `text`, and `--database-file`; it gets the one given as `database`."""

    def with_options(command: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(command)
        def with_database(database: Database | None, database_file: Path | None, **given: Any) -> object:
            if database is not None and database_file is not None:
                raise click.UsageError("Give --database or --database-file, not both.")
            if database_file is not None:
                database = Database(file=str(database_file.absolute()))
            return command(database=database or Database(), **given)

        by_file = click.option(
            "--database-file",
            type=FILE,
            metavar="FILE",
            help="A file, mode 600, that holds that URL; this one may hold a password.",
        )
        return click.option("--database", type=Checked("URL", parse_database), help=text)(by_file(with_database))

    return with_options


@click.command()
@at_home_only("a home is made in a folder of this machine")
@click.argument("home", type=click.Path(path_type=Path), envvar="FLEET_HOME")
@click.option("--name", default="fleet", show_default=True, help="The fleet's name, shown in its CAs' subjects.")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="H",
    help="A DNS name or IP address that devices will use; may be repeated. localhost is always included. "
    "With one that is not of this machine alone, as localhost is, the server listens on all interfaces; without, on "
    "loopback.",
)
@database_options(
    "PostgreSQL instead of SQLite: postgresql://USER@HOST[:PORT]/DATABASE, without a password; "
    "that comes from PGPASSWORD or ~/.pgpass."
)
@output_option
def init(home: Path, name: str, hosts: tuple[str, ...], database: Database, output: str) -> None:
    """Make a fleet's home in the folder HOME.

    It gets settings (fleet.toml, commented), a root CA and an issuing CA, a server certificate, and an empty registry.
    A folder that holds anything is refused and left as it is.

    With PostgreSQL several nodes serve one fleet: make the home on one of them, and copy it to the others.

    \b
    Examples:
      fleet init ./home --name acme --host iot.acme.example
      fleet init ./home --database postgresql://fleet@db.acme.example/fleet?sslmode=verify-full
    """
    if not name.strip():
        raise click.UsageError("--name must not be empty.")
    is_public = not all(map(is_loopback, hosts))  # an operator who names hosts means to be reached
    listen = "0.0.0.0" if is_public else "127.0.0.1"  # noqa: S104
    settings = Settings(
        name=name,
        hosts=tuple(dict.fromkeys((*Settings().hosts, *hosts))),
        est=Address(listen, 8443),
        mqtt=Address(listen, 8883),
        http=Address(listen, 8444),
        database=database,
    )
    with attempting(f"making a home in '{home}'"):
        made = asyncio.run(create_home(home.absolute(), settings, datetime.now(UTC)))
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
        click.echo(f"A root for other homes: fleet ca crl --home {home_word} root.crl, then fleet ca sign", err=True)
