"""`fleet status`: what a fleet holds, and how its server is doing."""

import click

from fleet.cli.desk import Desk, fleet_option
from fleet.cli.errors import attempting
from fleet.cli.output import output_option, print_value


@click.command()
@fleet_option
@output_option
def status(desk: Desk, output: str) -> None:
    """Show what the registry holds; with --url, the server's uptime and counters too."""
    with attempting("asking for the status"):
        found = desk.status()
    print_value(found, output)
