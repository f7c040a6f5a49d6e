"""`fleet forecast`: what expires when."""

import sys

import click

from fleet.cli.errors import attempting
from fleet.cli.options import client_option
from fleet.cli.output import output_option, print_rows, print_value
from fleet.client.client import Client
from fleet.config.streams import EXIT_FAILED
from fleet.services.forecast import CLIFF_PERCENT

COLUMNS = ("week", "devices", "tokens", "authorities")


@click.command()
@client_option
@click.option("--weeks", type=click.IntRange(1, 520), default=26, show_default=True, help="Number of weeks.")
@click.option(
    "--cliff",
    type=click.FloatRange(1, 100),
    default=CLIFF_PERCENT,
    show_default=True,
    metavar="PERCENT",
    help="Warn of a week in which more than this share of the fleet expires.",
)
@click.option("--check", is_flag=True, help="Exit 1 when there is a warning: for cron.")
@output_option
def forecast(client: Client, weeks: int, cliff: float, check: bool, output: str) -> None:
    """Show, week by week, how many device certificates and tokens expire, and which of the fleet's own certificates.

    \b
    Examples:
      fleet forecast --weeks 13
      fleet forecast --check -o json

    Warnings go to standard error (in JSON: under "warnings"): a week in which much of the fleet expires, a CA that
    expires within the weeks shown, and one that expires before certificates of a model would, which it cuts short.
    """

    with attempting("forecasting"):
        seen = client.get("/v1/forecast", weeks=weeks, cliff_percent=cliff)
    if output == "json":
        print_value(seen, output)
    else:
        print_rows(COLUMNS, [week for week in seen["weeks"] if any(week[key] for key in COLUMNS[1:])], output)
        devices, overdue = seen["devices"], seen["overdue"]
        hold = "1 device in service holds" if devices == 1 else f"{devices} devices in service hold"
        click.echo(f"{hold} a certificate; expired: {overdue}.", err=True)
        for warning in seen["warnings"]:
            click.echo(f"Warning: {warning['message']}", err=True)
    if check and seen["warnings"]:
        sys.exit(EXIT_FAILED)
