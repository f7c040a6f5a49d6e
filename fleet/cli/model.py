"""`fleet model`: device models: their certificates and topics."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import click
from msgspec.structs import replace

from fleet.cli.errors import attempting
from fleet.cli.model_rules import model_options, override_options
from fleet.cli.options import client_option
from fleet.cli.output import Column, Row, output_option, print_value
from fleet.cli.parameters import MODEL, TAG, duration_text, wrong_use
from fleet.cli.records import Records
from fleet.client.client import Client
from fleet.domain.device import Model, new_model
from fleet.domain.errors import NotFound
from fleet.domain.model_rules import DEFAULT_RULES, ModelKind, ModelRules, rules_json, rules_of
from fleet.domain.mqtt_overrides import with_override, without_override
from fleet.domain.topic_policy import device_named, reaches_every_device
from fleet.services.inventory import checked_model

COLUMNS = (
    "name",
    "kind",
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
SESSION_RULES = ("client_id", "sessions_max", "qos_max", "shared_subscriptions", "on_denied")
"""Shown to people at their usual values, too."""


@click.group()
def model() -> None:
    """Device models: what their certificates look like, and which topics they may use."""


def _shown(model: Row) -> Row:
    """The API's model with its lifetime, in seconds, under the key that the commands have for it."""
    return {"lifetime" if key == "lifetime_seconds" else key: value for key, value in model.items()}


def _in_short(model: Row) -> Row:
    """For people: the MQTT limits and session rules in force, and of other rules those with unusual values."""
    usual = rules_json(DEFAULT_RULES)
    shown = {key: value for key, value in model.items() if key not in usual}
    if model["kind"] != usual["kind"]:
        shown["kind"] = model["kind"]
    shown["lifetime"] = duration_text(timedelta(seconds=model["lifetime"]))
    if model["tenant"]:
        shown["tenant"] = model["tenant"]
    if model["former_tenants"]:
        shown["former_tenants"] = [name or "the fleet's own" for name in model["former_tenants"]]
    for group in ("admission", "profile", "renewal", "mqtt", "http"):
        for name, value in model[group].items():
            if value != usual[group][name] or name in ("paths", *MQTT_LIMITS, *SESSION_RULES):
                shown[f"{group} {name}"] = value or MQTT_LIMITS.get(name, value)
    if overrides := model["mqtt"]["overrides"]:
        shown["mqtt overrides"] = [_override_text(**each) for each in overrides]
    return shown


def _override_text(tag: str, **said: Any) -> str:
    listed = {name: ",".join(value) if isinstance(value, list) else str(value).lower() for name, value in said.items()}
    return " ".join((f"{tag}:", *(f"{name}={text or '-'}" for name, text in listed.items())))


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

    Without filters, its devices publish under devices/{id}/up/ and subscribe under devices/{id}/down/. An application
    is a device of a model with --application: it may read what all devices send, and write to them.

    \b
    Examples:
      fleet model add cam2 --lifetime 30d --publish 'devices/{id}/up/#' --subscribe 'devices/{id}/down/#'
      fleet model add backend --application
    """
    _check(name, changes)
    with attempting(f"adding model '{name}'"):
        added = _shown(client.post("/v1/models", {"name": name, **changes}))
    print_value(added, output, _in_short(added))
    _note_wide(added, changes)


@model.command(name="set")
@client_option
@click.argument("name", type=MODEL)
@model_options(None, retain=None, is_new=False)
@output_option
def set_(client: Client, name: str, changes: dict[str, Any], output: str) -> None:
    """Change the model NAME; what is not given stays as it is.

    Filters and admission paths given replace all of that kind. Live sessions are restricted to the filters at once;
    certificates keep their lifetime until they are renewed.
    """
    if not changes:
        raise click.UsageError("Nothing to change: give an option of those in --help.")
    _check(name, changes)
    with attempting(f"changing model '{name}'"):
        before = client.get(MODELS.path(name))["admission"]["paths"] if "paths" in changes.get("admission", {}) else []
        # A merge patch of what is named here alone overwrites nothing that others change meanwhile.
        changed = _shown(client.patch(MODELS.path(name), changes, "*"))
    print_value(changed, output, _in_short(changed))
    if gone := [path for path in before if path not in changed["admission"]["paths"]]:
        click.echo(f"No longer admitted: {', '.join(gone)}.", err=True)
    _note_wide(changed, changes)


def _note_wide(model: Row, changes: Mapping[str, Any]) -> None:
    """Say when each device of the model has what only applications should."""
    given = (*changes.get("publish", ()), *changes.get("subscribe", ()))
    if model["kind"] != ModelKind.DEVICE:
        return
    if wide := [each for each in given if reaches_every_device(each)]:
        wording = f"Every device of model {model['name']} has topics of all other devices now: {', '.join(wide)}."
        click.echo(f"{wording} For back-end applications: fleet model add NAME --application", err=True)
    for each in given:
        if named := device_named(each):
            wording = f"Every device of model {model['name']} has a topic of device {named} now: {each}."
            click.echo(f"{wording} For each device's own: {each.replace(named, '{id}', 1)}", err=True)


@model.command()
@client_option
@click.argument("name", type=MODEL)
@click.argument("tag", type=TAG)
@override_options
@click.option("--remove", is_flag=True, help="The model has no override for this tag any more.")
@click.option("--first", is_flag=True, help="Put it before the others: where two say the same, the first decides.")
@output_option
def override(
    client: Client, name: str, tag: tuple[str, str], changes: dict[str, Any], remove: bool, first: bool, output: str
) -> None:
    """Say what applies to those devices of the model NAME that have the tag KEY=VALUE, in place of the model's own.

    What is not given stays as the override says it so far, or the model. Filters given replace all of that kind. A new
    override is the last in the model's list. Live sessions are judged by it at once.

    \b
    Example:
      fleet model override cam tier=gold --messages-per-second 1000 --max-packet-size 1MiB
    """
    if remove == bool(changes or first):
        raise click.UsageError("Give an option of those in --help, or --remove.")
    said = {**changes.pop("mqtt", {}), **changes}
    text = "=".join(tag)
    with attempting(f"changing model '{name}' for {text}"):
        before, etag = client.ask("GET", MODELS.path(name))
        rules = rules_of({"mqtt": {"overrides": before["mqtt"]["overrides"]}}, _usual(name, before))
        if remove and (new := without_override(rules.mqtt, text)) == rules.mqtt:
            raise NotFound("no-such-override", f"It has no override for {text}.", f"See: fleet model show {name}")
        with wrong_use():
            if not remove:
                [added] = rules_of({"mqtt": {"overrides": [{"tag": text, **said}]}}).mqtt.overrides
                new = with_override(rules.mqtt, added, first=first)
            rules = checked_model(Model(name, rules=replace(rules, mqtt=new))).rules
        overrides = rules_json(rules)["mqtt"]["overrides"]
        changed = _shown(client.patch(MODELS.path(name), {"mqtt": {"overrides": overrides}}, etag))
    print_value(changed, output, _in_short(changed))
    _note_wide(changed, said)


def _check(name: str, changes: Mapping[str, Any]) -> None:
    """Raises: click.UsageError: no model could have these."""
    said = {key: changes[key] for key in rules_json(DEFAULT_RULES) if key in changes}
    lifetime = timedelta(seconds=changes.get("lifetime_seconds", 86_400))
    publish, subscribe = (tuple(changes.get(key, ())) for key in ("publish", "subscribe"))
    with wrong_use():
        rules = rules_of(said, _usual(name, changes))
        checked_model(Model(name, lifetime, publish=publish, subscribe=subscribe, rules=rules))


def _usual(name: str, model: Mapping[str, Any]) -> ModelRules:
    """The rules of a model of the kind that `model` says, of which nothing else is said."""
    return new_model(name, ModelKind(model.get("kind", ModelKind.DEVICE))).rules
