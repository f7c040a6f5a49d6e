"""`fleet renewal`: campaigns that renew all certificates of a model ahead of time, for an incident."""

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from fleet.cli.errors import attempting
from fleet.cli.options import client_option
from fleet.cli.output import Row, output_option, print_rows, print_value
from fleet.cli.parameters import DURATION, MODEL, PAST_TIME
from fleet.client.client import Client, path_of

COLUMNS = ("model", "before", "start", "end", "devices", "renewed")
_MODEL = click.option("--model", required=True, type=MODEL, help="The model of the devices.")


@click.group()
def renewal() -> None:
    """When devices renew: each certificate has a renewal window, and a campaign moves those of a whole model forward.

    Agents ask for their window every few hours. A campaign does not revoke anything: do that, or end the model's grace
    period, when the old certificates must stop working.
    """


@renewal.command()
@client_option
@_MODEL
@click.option(
    "--before",
    required=True,
    metavar="TIME",
    help="Certificates issued before this time: 12h (ago), 2026-03-01, an RFC 3339 time, or now.",
)
@click.option("--spread", type=DURATION, default="6h", show_default=True, help="Time over which renewals are spread.")
@output_option
def campaign(client: Client, model: str, before: str, spread: timedelta, output: str) -> None:
    """Renew all certificates of a model that were issued before a time, spread over a period from now.

    \b
    Example, after a leak on the first of March:
      fleet renewal campaign --model cam2 --before 2026-03-01T12:00Z --spread 6h
      fleet renewal progress --model cam2
    """
    now = datetime.now(UTC)  # for both: certificates issued after the start need no renewal
    try:
        moment = now if before == "now" else PAST_TIME.convert(before, None, None)
    except click.BadParameter as error:
        raise click.BadParameter(error.message, param_hint="'--before'") from error
    if moment > now:
        raise click.UsageError("--before must be in the past: certificates issued later need no renewal.")
    called = {"before": moment.isoformat(), "start": now.isoformat(), "spread_seconds": int(spread.total_seconds())}
    with attempting(f"calling a renewal campaign for model '{model}'"):
        _patch(client, model, called)
        found = _progress(client, model)
    print_value(found, output)


@renewal.command()
@client_option
@_MODEL
@output_option
def progress(client: Client, model: str, output: str) -> None:
    """Show the progress of a model's campaign."""
    with attempting(f"showing the renewal campaign of model '{model}'"):
        found = _progress(client, model)
    print_value(found, output)


@renewal.command(name="list")
@client_option
@output_option
def list_(client: Client, output: str) -> None:
    """List the campaigns, with their progress."""
    with attempting("listing the renewal campaigns"):
        models = [each["name"] for each in client.all_items("/v1/models") if each["renewal"]["campaign"] is not None]
        print_rows(COLUMNS, [_progress(client, name) for name in models], output)


@renewal.command()
@client_option
@_MODEL
@output_option
def stop(client: Client, model: str, output: str) -> None:
    """End a model's campaign: its certificates are renewed in their usual windows again."""
    with attempting(f"ending the renewal campaign of model '{model}'"):
        _patch(client, model, None)
    print_value({"model": model, "campaign": None}, output)


def _patch(client: Client, model: str, campaign: Row | None) -> None:
    client.patch(path_of("/v1/models/{}", model), {"renewal": {"campaign": campaign}}, "*")


def _progress(client: Client, model: str) -> dict[str, Any]:
    """The API's progress, the campaign's times beside the counts."""
    found = client.get(path_of("/v1/models/{}/renewal", model))
    campaign = found["campaign"]
    if campaign is None:
        return {"model": found["model"], "campaign": "none"}
    end = datetime.fromisoformat(campaign["start"]) + timedelta(seconds=campaign["spread_seconds"])
    times = {"before": campaign["before"], "start": campaign["start"], "end": end}
    return {"model": found["model"], **times, "devices": found["devices"], "renewed": found["renewed"]}
