"""`fleet model`: device models: their certificates and topics."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import click

from fleet.cli.durations import CERTIFICATE_LIFETIME, duration_text
from fleet.cli.errors import attempting
from fleet.cli.model_rules import rule_options
from fleet.cli.options import client_option, limit_option
from fleet.cli.output import Column, Row, output_option, print_rows, print_value
from fleet.cli.parameters import MODEL, wrong_use
from fleet.cli.several import print_each
from fleet.client.client import Client, path_of
from fleet.domain.device import KEY_TYPES, Model
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
_LIFETIME = "Certificate lifetime: 12h, 30d."
_KEY_TYPE = "A key type that its devices may use; may be repeated."
_PUBLISH = "A topic filter that its devices may publish to; {id} and {model} stand for their own. May be repeated."
_SUBSCRIBE = "A topic filter that its devices may subscribe to. May be repeated."
_RETAIN = "Whether its devices may publish retained messages, which the broker keeps."


@click.group()
def model() -> None:
    """Device models: what their certificates look like, and which topics they may use."""


@model.command()
@client_option
@click.argument("name", type=MODEL)
@click.option("--lifetime", type=CERTIFICATE_LIFETIME, default="90d", show_default=True, help=_LIFETIME)
@click.option("--key-type", "key_types", multiple=True, type=click.Choice(KEY_TYPES), help=_KEY_TYPE)
@click.option("--publish", multiple=True, metavar="FILTER", help=_PUBLISH)
@click.option("--subscribe", multiple=True, metavar="FILTER", help=_SUBSCRIBE)
@click.option("--retain/--no-retain", default=False, show_default=True, help=_RETAIN)
@rule_options
@output_option
def add(
    client: Client,
    name: str,
    lifetime: timedelta,
    key_types: tuple[str, ...],
    publish: tuple[str, ...],
    subscribe: tuple[str, ...],
    retain: bool,
    rules: dict[str, Any],
    output: str,
) -> None:
    """Add the model NAME.

    Without filters, its devices publish under devices/{id}/up/ and subscribe under devices/{id}/down/.

    \b
    Example:
      fleet model add cam2 --lifetime 30d --publish 'devices/{id}/up/#' --subscribe 'devices/{id}/down/#'
    """
    body = _changes(lifetime, key_types, publish, subscribe, retain, rules)
    _check(name, body)
    with attempting(f"adding model '{name}'"):
        added = _shown(client.post("/v1/models", {"name": name, **body}))
    print_value(added, output, _in_short(added))


@model.command(name="set")
@client_option
@click.argument("name", type=MODEL)
@click.option("--lifetime", type=CERTIFICATE_LIFETIME, help=_LIFETIME)
@click.option("--key-type", "key_types", multiple=True, type=click.Choice(KEY_TYPES), help=_KEY_TYPE)
@click.option("--publish", multiple=True, metavar="FILTER", help=_PUBLISH)
@click.option("--subscribe", multiple=True, metavar="FILTER", help=_SUBSCRIBE)
@click.option("--retain/--no-retain", default=None, help=_RETAIN)
@rule_options
@output_option
def set_(
    client: Client,
    name: str,
    lifetime: timedelta | None,
    key_types: tuple[str, ...],
    publish: tuple[str, ...],
    subscribe: tuple[str, ...],
    retain: bool | None,
    rules: dict[str, Any],
    output: str,
) -> None:
    """Change the model NAME; what is not given stays as it is.

    Filters given replace all its filters of that kind. Live sessions are restricted to them at once; certificates keep
    their lifetime until they are renewed.
    """
    changes = _changes(lifetime, key_types, publish, subscribe, retain, rules)
    if not changes:
        raise click.UsageError("Nothing to change: give an option of those in --help.")
    _check(name, changes)
    with attempting(f"changing model '{name}'"):
        # A merge patch of what is named here alone overwrites nothing that others change meanwhile.
        changed = _shown(client.patch(path_of("/v1/models/{}", name), changes, "*"))
    print_value(changed, output, _in_short(changed))


def _changes(
    lifetime: timedelta | None,
    key_types: tuple[str, ...],
    publish: tuple[str, ...],
    subscribe: tuple[str, ...],
    retain: bool | None,
    rules: Mapping[str, Any],
) -> dict[str, Any]:
    """What the options say, as the API takes it."""
    lists = {"key_types": key_types, "publish": publish, "subscribe": subscribe}
    changes: dict[str, Any] = {name: list(value) for name, value in lists.items() if value}
    if lifetime is not None:
        changes["lifetime_seconds"] = int(lifetime.total_seconds())
    if retain is not None:
        changes["retain"] = retain
    return {**changes, **rules}


def _check(name: str, changes: Mapping[str, Any]) -> None:
    """Raises: click.UsageError: no model could have these."""
    rules = {key: changes[key] for key in rules_json(DEFAULT_RULES) if key in changes}
    lifetime = timedelta(seconds=changes.get("lifetime_seconds", 86_400))
    publish, subscribe = (tuple(changes.get(key, ())) for key in ("publish", "subscribe"))
    with wrong_use():
        checked_model(Model(name, lifetime, publish=publish, subscribe=subscribe, rules=rules_of(rules)))


@model.command(name="list")
@client_option
@limit_option
@output_option
def list_(client: Client, limit: int | None, output: str) -> None:
    """List the models."""
    with attempting("listing the models"):
        print_rows(COLUMNS, map(_shown, client.items("/v1/models", limit)), output)


@model.command()
@client_option
@click.argument("names", type=MODEL, nargs=-1, required=True, metavar="NAME...")
@output_option
def show(client: Client, names: tuple[str, ...], output: str) -> None:
    """Show models with their rules."""
    path = "/v1/models/{}"
    print_each(names, "showing model '{}'", lambda name: _shown(client.get(path_of(path, name))), output, _in_short)


def _shown(model: Row) -> dict[str, Any]:
    """The API's model with its lifetime, in seconds, under the key that the commands have for it."""
    return {"lifetime" if key == "lifetime_seconds" else key: value for key, value in model.items()}


def _in_short(model: Row) -> Row:
    """For people: without the rules that have their usual value."""
    usual = rules_json(DEFAULT_RULES)
    shown = {key: value for key, value in model.items() if key not in usual}
    shown["lifetime"] = duration_text(timedelta(seconds=model["lifetime"]))
    if model["tenant"]:
        shown["tenant"] = model["tenant"]
    if model["former_tenants"]:
        shown["former_tenants"] = [name or "the fleet's own" for name in model["former_tenants"]]
    for group in ("admission", "profile", "renewal"):
        for name, value in model[group].items():
            if value != usual[group][name] or name == "paths":
                shown[f"{group} {name}"] = value
    return shown
