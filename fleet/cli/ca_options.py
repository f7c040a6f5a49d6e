"""What the commands of `fleet ca` share: options, and OUT."""

from pathlib import Path

import click

from fleet.cli.parameters import TENANT_IF_ANY
from fleet.config.durable_files import write_file
from fleet.config.streams import printable

SIGNS = "CA keys stay in the home"
"""Why a command takes no --url."""
OUT = click.Path(path_type=Path, dir_okay=False, allow_dash=True)

tenant_option = click.option(
    "--tenant", default="", metavar="NAME", type=TENANT_IF_ANY, help="Of this tenant, in place of the fleet's own."
)
force_option = click.option("--force", is_flag=True, help="Replace OUT if it is there.")


def write_out(out: Path, pem: bytes, *, force: bool) -> None:
    """`pem` to the file, or to standard output for "-"."""
    if str(out) == "-":
        click.echo(printable(pem.decode(), keep="\n"), nl=False)
    else:
        write_file(out, pem, secret=False, force=force)
