"""`fleet forecast`: what ends when."""

import sys

import click

from fleet.cli.desk import Desk, fleet_option
from fleet.cli.errors import EXIT_FAILED, attempting
from fleet.cli.output import output_option, print_rows, print_value
from fleet.services import forecast as service

COLUMNS = ("week", "devices", "tokens", "authorities")


@click.command()
@fleet_option
@click.option("--weeks", type=click.IntRange(1, 520), default=26, show_default=True, help="How far to look.")
@click.option(
    "--cliff",
    type=click.FloatRange(1, 100),
    default=service.CLIFF_PERCENT,
    show_default=True,
    metavar="PERCENT",
    help="Warn of a week in which more than this much of the fleet ends.",
)
@click.option("--check", is_flag=True, help="Exit 1 when there is a warning: for cron.")
@output_option
def forecast(desk: Desk, weeks: int, cliff: float, check: bool, output: str) -> None:
    """Show, week by week, how many devices' certificates and tokens end, and which of the fleet's own.

    \b
    Examples:
      fleet forecast --weeks 13
      fleet forecast --check -o json

    Warnings stand on standard error (in JSON: under "warnings"): a week in which much of the fleet ends, a CA that ends
    within the weeks shown, and one whose remaining life is shorter than a model's certificates, which it cuts.
    """

    with attempting("forecasting"):
        seen = desk.forecast(weeks, cliff)
    rows = [(f"{week.monday:%Y-%m-%d}", week.devices, week.tokens, week.authorities) for week in seen.weeks]
    if output == "json":
        print_value(
            {
                "devices": seen.devices,
                "overdue": seen.overdue,
                "weeks": [dict(zip(COLUMNS, row, strict=True)) for row in rows],
                "warnings": [{"code": w.code, "message": w.message} for w in seen.warnings],
            },
            output,
        )
    else:
        print_rows(COLUMNS, [row for row in rows if any(row[1:])], output)
        click.echo(f"{seen.devices} devices in service hold a certificate; of {seen.overdue} it has ended.", err=True)
        for warning in seen.warnings:
            click.echo(f"Warning: {warning.message}", err=True)
    if check and seen.warnings:
        sys.exit(EXIT_FAILED)
