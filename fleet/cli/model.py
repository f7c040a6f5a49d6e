"""`fleet model`: device models: their certificates and topics."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import click

from fleet.cli.durations import duration_text
from fleet.cli.errors import attempting
from fleet.cli.model_rules import model_options
from fleet.cli.options import client_option
from fleet.cli.output import Column, Row, output_option, print_value
from fleet.cli.parameters import MODEL, wrong_use
from fleet.cli.records import Records
from fleet.client.client import Client
from fleet.domain.device import Model
from fleet.domain.model_rules import DEFAULT_RULES, rules_json, rules_of
from fleet.services.inventory import checked_model

COLUMNS = (
    "name",
    Column("lifetime", format=lambda seconds: duration_text(timedelta(seconds=seconds))),
    "key_types",
    "publish",
    "subscribe",
    "retain",
)

MQTT_LIMITS = {
    "messages_per_second": "no limit",
    "bytes_per_second": "no limit",
    "burst_seconds": 0,
    "subscriptions_max": "fleet.toml's (filters_per_device_max)",
    "packet_size_max": "fleet.toml's (packet_size_max)",
}
"""What a 0 means to people."""


@click.group()
def model() -> None:
    """Device models: what their certificates look like, and which topics they may use."""


def _shown(model: Row) -> Row:
    """The API's model with its lifetime, in seconds, under the key that the commands have for it."""
    return {"lifetime" if key == "lifetime_seconds" else key: value for key, value in model.items()}


def _in_short(model: Row) -> Row:
    """For people: the MQTT limits in force, and of the other rules those that have not their usual value."""
    usual = rules_json(DEFAULT_RULES)
    shown = {key: value for key, value in model.items() if key not in usual}
    shown["lifetime"] = duration_text(timedelta(seconds=model["lifetime"]))
    if model["tenant"]:
        shown["tenant"] = model["tenant"]
    if model["former_tenants"]:
        shown["former_tenants"] = [name or "the fleet's own" for name in model["former_tenants"]]
    for group in ("admission", "profile", "renewal", "mqtt", "http"):
        for name, value in model[group].items():
            if value != usual[group][name] or name == "paths" or name in MQTT_LIMITS:
                shown[f"{group} {name}"] = value or MQTT_LIMITS.get(name, value)
    return shown


MODELS = Records(model, MODEL, COLUMNS, _shown)
MODELS.list("List the models.")
MODELS.show("Show models with their rules.", table=_in_short)


@model.command()
@client_option
@click.argument("name", type=MODEL)
@model_options("90d", retain=False, is_new=True)
@output_option
def add(client: Client, name: str, changes: dict[str, Any], output: str) -> None:
    """Add the model NAME.

    Without filters, its devices publish under devices/{id}/up/ and subscribe under devices/{id}/down/.

    \b
    Example:
      fleet model add cam2 --lifetime 30d --publish 'devices/{id}/up/#' --subscribe 'devices/{id}/down/#'
    """
    _check(name, changes)
    with attempting(f"adding model '{name}'"):
        added = _shown(client.post("/v1/models", {"name": name, **changes}))
    print_value(added, output, _in_short(added))


@model.command(name="set")
@client_option
@click.argument("name", type=MODEL)
@model_options(None, retain=None, is_new=False)
@output_option
def set_(client: Client, name: str, changes: dict[str, Any], output: str) -> None:
    """Change the model NAME; what is not given stays as it is.

    Filters given replace all its filters of that kind. Live sessions are restricted to them at once; certificates keep
    their lifetime until they are renewed.
    """
    if not changes:
        raise click.UsageError("Nothing to change: give an option of those in --help.")
    _check(name, changes)
    with attempting(f"changing model '{name}'"):
        # A merge patch of what is named here alone overwrites nothing that others change meanwhile.
        changed = _shown(client.patch(MODELS.path(name), changes, "*"))
    print_value(changed, output, _in_short(changed))


def _check(name: str, changes: Mapping[str, Any]) -> None:
    """Raises: click.UsageError: no model could have these."""
    rules = {key: changes[key] for key in rules_json(DEFAULT_RULES) if key in changes}
    lifetime = timedelta(seconds=changes.get("lifetime_seconds", 86_400))
    publish, subscribe = (tuple(changes.get(key, ())) for key in ("publish", "subscribe"))
    with wrong_use():
        checked_model(Model(name, lifetime, publish=publish, subscribe=subscribe, rules=rules_of(rules)))
