"""`fleet renewal`: a whole model's certificates renewed ahead of their time, for an incident."""

from datetime import timedelta
from functools import partial

import click

from fleet.cli.desk import Desk, fleet_option
from fleet.cli.durations import DURATION
from fleet.cli.errors import attempting
from fleet.cli.home import utc_now
from fleet.cli.output import output_option, print_rows, print_value
from fleet.domain.device_filter import parse_time
from fleet.domain.renewal import campaign_end
from fleet.services.renewal import Progress, with_campaign, without_campaign

_MODEL = click.option("--model", required=True, metavar="NAME", help="Whose devices.")


@click.group()
def renewal() -> None:
    """When devices renew: each certificate has a window of its own, and a campaign moves a whole model's forward.

    Agents ask for their window every few hours. A campaign does not revoke anything: do that, or end the model's grace,
    when the old certificates must stop working.
    """


@renewal.command()
@fleet_option
@_MODEL
@click.option("--before", required=True, metavar="TIME", help="Certificates issued before then: 2026-03-01, or now.")
@click.option("--spread", type=DURATION, default="6h", show_default=True, help="The time over which they renew.")
@output_option
def campaign(desk: Desk, model: str, before: str, spread: timedelta, output: str) -> None:
    """Have all certificates of a model that were issued before a time renewed, spread from now on.

    \b
    Example, after a leak on the first of March:
      fleet renewal campaign --model cam2 --before 2026-03-01T12:00Z --spread 6h
      fleet renewal progress --model cam2
    """
    now = utc_now()
    with attempting(f"calling a renewal campaign for model '{model}'"):
        moment = now if before == "now" else parse_time(before, now)
        desk.change_model(model, partial(with_campaign, before=moment, spread=spread, now=now))
        found = desk.renewal_progress(model)
    print_value(_shown(found), output)


@renewal.command()
@fleet_option
@_MODEL
@output_option
def progress(desk: Desk, model: str, output: str) -> None:
    """Show how far the campaign of a model has come."""
    with attempting(f"showing the renewal campaign of model '{model}'"):
        found = desk.renewal_progress(model)
    print_value(_shown(found), output)


@renewal.command(name="list")
@fleet_option
@output_option
def list_(desk: Desk, output: str) -> None:
    """List the campaigns, with their progress."""
    with attempting("listing the renewal campaigns"):
        models = [m.name for m in desk.models() if m.rules.renewal.campaign is not None]
        found = [_shown(desk.renewal_progress(name)) for name in models]
    columns = ("model", "before", "start", "end", "devices", "renewed")
    print_rows(columns, [tuple(one[name] for name in columns) for one in found], output)


@renewal.command()
@fleet_option
@_MODEL
@output_option
def stop(desk: Desk, model: str, output: str) -> None:
    """End the campaign of a model: its certificates are renewed in their usual windows again."""
    with attempting(f"ending the renewal campaign of model '{model}'"):
        desk.change_model(model, without_campaign)
    print_value({"model": model, "campaign": None}, output)


def _shown(found: Progress) -> dict[str, object]:
    if found.campaign is None:
        return {"model": found.model, "campaign": "none"}
    return {
        "model": found.model,
        "before": found.campaign.before,
        "start": found.campaign.start,
        "end": campaign_end(found.campaign),
        "devices": found.devices,
        "renewed": found.renewed,
    }
