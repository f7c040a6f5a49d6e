"""`fleet init`: a new home."""

import shlex
from pathlib import Path

import click

from fleet.cli.errors import attempting
from fleet.cli.home import run, utc_now
from fleet.cli.output import output_option, print_value
from fleet.home import create_home
from fleet.settings import Address, Settings

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@click.command()
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
@output_option
def init(home: Path, name: str, hosts: tuple[str, ...], output: str) -> None:
    """Make a fleet's home in the folder HOME.

    It gets settings (fleet.toml, commented), a root CA and an issuing CA, a server certificate, and an empty registry.
    A folder that holds anything is refused and left as it is.

    \b
    Example:
      fleet init ./home --name acme --host iot.acme.example
    """
    if not name.strip():
        raise click.UsageError("--name must not be empty.")
    listen = "0.0.0.0" if hosts else "127.0.0.1"  # noqa: S104 - an operator who names hosts means to be reached
    settings = Settings(
        name=name,
        hosts=tuple(dict.fromkeys((*LOOPBACK, *hosts))),
        est=Address(listen, 8443),
        mqtt=Address(listen, 8883),
        http=Address(listen, 8444),
    )
    with attempting(f"making a home in '{home}'"):
        made = run(create_home(home.absolute(), settings, utc_now()))
    print_value(
        {"home": str(made.path), "name": name, "hosts": list(settings.hosts), "ca_file": str(made.root_certificate)},
        output,
    )
    if output == "table":
        home_word = shlex.quote(str(home))
        click.echo(f"\nNext: fleet serve --home {home_word}\nKeep {made.root_key} safe, best offline.", err=True)
