"""`fleet model`: kinds of devices."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import click

from fleet.cli.desk import Desk, fleet_option
from fleet.cli.durations import DURATION, duration_text
from fleet.cli.errors import attempting
from fleet.cli.model_rules import rule_options
from fleet.cli.output import output_option, print_rows, print_value
from fleet.domain.device import KEY_TYPES, Model
from fleet.domain.model_rules import DEFAULT_RULES, rules_json, rules_of

_LIFETIME = "How long a certificate lives: 12h, 30d."
_KEY_TYPE = "A kind of key that its devices may use; may be repeated."
_PUBLISH = (
    "A topic filter that its devices may publish to; {id} and {model} stand for the device's own. May be repeated."
)
_SUBSCRIBE = "A topic filter that its devices may subscribe to. May be repeated."
_RETAIN = "Whether its devices may leave retained messages, which the broker keeps for ever."


@click.group()
def model() -> None:
    """Kinds of devices: what their certificates look like, and which topics they may use."""


@model.command()
@fleet_option
@click.argument("name")
@click.option("--lifetime", type=DURATION, default="90d", show_default=True, help=_LIFETIME)
@click.option("--key-type", "key_types", multiple=True, type=click.Choice(KEY_TYPES), help=_KEY_TYPE)
@click.option("--publish", multiple=True, metavar="FILTER", help=_PUBLISH)
@click.option("--subscribe", multiple=True, metavar="FILTER", help=_SUBSCRIBE)
@click.option("--retain/--no-retain", default=False, show_default=True, help=_RETAIN)
@rule_options
@output_option
def add(
    desk: Desk,
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
    usual = Model(name, lifetime)
    with attempting(f"adding model '{name}'"):
        new = replace(
            usual,
            key_types=key_types or usual.key_types,
            publish=publish or usual.publish,
            subscribe=subscribe or usual.subscribe,
            retain=retain,
            rules=rules_of(rules),
        )
        desk.add_model(new)
    print_value(_shown_whole(new, output), output)


@model.command(name="set")
@fleet_option
@click.argument("name")
@click.option("--lifetime", type=DURATION, help=_LIFETIME)
@click.option("--key-type", "key_types", multiple=True, type=click.Choice(KEY_TYPES), help=_KEY_TYPE)
@click.option("--publish", multiple=True, metavar="FILTER", help=_PUBLISH)
@click.option("--subscribe", multiple=True, metavar="FILTER", help=_SUBSCRIBE)
@click.option("--retain/--no-retain", default=None, help=_RETAIN)
@rule_options
@output_option
def set_(
    desk: Desk,
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

    Filters given take the place of all its filters of that kind. Live sessions are held to them at once; certificates
    keep their lifetime until they are renewed.
    """

    def change(old: Model) -> Model:
        return replace(
            old,
            certificate_lifetime=lifetime or old.certificate_lifetime,
            key_types=key_types or old.key_types,
            publish=publish or old.publish,
            subscribe=subscribe or old.subscribe,
            retain=old.retain if retain is None else retain,
            rules=rules_of(rules, old.rules),
        )

    if not (lifetime or key_types or publish or subscribe or rules) and retain is None:
        raise click.UsageError("Nothing to change: give an option of those in --help.")
    with attempting(f"changing model '{name}'"):
        changed = desk.change_model(name, change)
    print_value(_shown_whole(changed, output), output)


@model.command(name="list")
@fleet_option
@output_option
def list_(desk: Desk, output: str) -> None:
    """List the models."""
    with attempting("listing the models"):
        found = desk.models()
    shown = [_shown_whole(m, output) if output == "json" else _shown(m, output) for m in found]
    print_rows(tuple(shown[0]) if shown else ("name",), [tuple(m.values()) for m in shown], output)


@model.command()
@fleet_option
@click.argument("name")
@output_option
def show(desk: Desk, name: str, output: str) -> None:
    """Show the model NAME."""
    with attempting(f"showing model '{name}'"):
        found = desk.model(name)
    print_value(_shown_whole(found, output), output)


def _shown(m: Model, output: str) -> dict[str, object]:
    lifetime = duration_text(m.certificate_lifetime) if output == "table" else m.certificate_lifetime
    return {
        "name": m.name,
        "lifetime": lifetime,
        "key_types": m.key_types,
        "publish": m.publish,
        "subscribe": m.subscribe,
        "retain": m.retain,
    }


def _shown_whole(m: Model, output: str) -> dict[str, object]:
    """With its rules; the table leaves out those that are as usual."""
    shown, rules = _shown(m, output), rules_json(m.rules)
    if output == "json":
        return {**shown, **rules}
    usual = rules_json(DEFAULT_RULES)
    if rules["tenant"]:
        shown["tenant"] = rules["tenant"]
    if rules["former_tenants"]:
        shown["former_tenants"] = [name or "the fleet's own" for name in rules["former_tenants"]]
    for group in ("admission", "profile", "renewal"):
        for name, value in rules[group].items():
            if value != usual[group][name] or name == "paths":
                shown[f"{group} {name}"] = value
    return shown
