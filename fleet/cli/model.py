"""`fleet model`: kinds of devices."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import click

from fleet.cli.durations import DURATION, duration_text
from fleet.cli.errors import attempting
from fleet.cli.home import OPERATOR, home_option, opened, run, utc_now
from fleet.cli.output import output_option, print_rows, print_value
from fleet.domain.access import Act
from fleet.domain.device import KEY_TYPES, Model
from fleet.domain.errors import NotFound
from fleet.services import inventory

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
@home_option
@click.argument("name")
@click.option("--lifetime", type=DURATION, default="90d", show_default=True, help=_LIFETIME)
@click.option("--key-type", "key_types", multiple=True, type=click.Choice(KEY_TYPES), help=_KEY_TYPE)
@click.option("--publish", multiple=True, metavar="FILTER", help=_PUBLISH)
@click.option("--subscribe", multiple=True, metavar="FILTER", help=_SUBSCRIBE)
@click.option("--retain/--no-retain", default=False, show_default=True, help=_RETAIN)
@output_option
def add(
    home: Path,
    name: str,
    lifetime: timedelta,
    key_types: tuple[str, ...],
    publish: tuple[str, ...],
    subscribe: tuple[str, ...],
    retain: bool,
    output: str,
) -> None:
    """Add the model NAME.

    Without filters, its devices publish under devices/{id}/up/ and subscribe under devices/{id}/down/.

    \b
    Example:
      fleet model add cam2 --lifetime 30d --publish 'devices/{id}/up/#' --subscribe 'devices/{id}/down/#'
    """
    usual = Model(name, lifetime)
    new = replace(
        usual,
        key_types=key_types or usual.key_types,
        publish=publish or usual.publish,
        subscribe=subscribe or usual.subscribe,
        retain=retain,
    )

    async def work() -> None:
        async with opened(home) as fleet:
            await inventory.add_model(fleet.registry, new, act=Act(OPERATOR, utc_now()))

    with attempting(f"adding model '{name}'"):
        run(work())
    print_value(_shown(new, output), output)


@model.command(name="set")
@home_option
@click.argument("name")
@click.option("--lifetime", type=DURATION, help=_LIFETIME)
@click.option("--key-type", "key_types", multiple=True, type=click.Choice(KEY_TYPES), help=_KEY_TYPE)
@click.option("--publish", multiple=True, metavar="FILTER", help=_PUBLISH)
@click.option("--subscribe", multiple=True, metavar="FILTER", help=_SUBSCRIBE)
@click.option("--retain/--no-retain", default=None, help=_RETAIN)
@output_option
def set_(
    home: Path,
    name: str,
    lifetime: timedelta | None,
    key_types: tuple[str, ...],
    publish: tuple[str, ...],
    subscribe: tuple[str, ...],
    retain: bool | None,
    output: str,
) -> None:
    """Change the model NAME; what is not given stays as it is.

    Filters given take the place of all its filters of that kind. Live sessions are held to them at once; certificates
    keep their lifetime until they are renewed.
    """

    async def work() -> Model:
        async with opened(home) as fleet:
            old = await fleet.registry.model(name)
            if old is None:
                raise NotFound("no-such-model", f"There is no model {name!r}.", "See: fleet model list")
            new = replace(
                old,
                certificate_lifetime=lifetime or old.certificate_lifetime,
                key_types=key_types or old.key_types,
                publish=publish or old.publish,
                subscribe=subscribe or old.subscribe,
                retain=old.retain if retain is None else retain,
            )
            await inventory.set_model(fleet.registry, new, act=Act(OPERATOR, utc_now()))
            return new

    if not (lifetime or key_types or publish or subscribe) and retain is None:
        raise click.UsageError("Nothing to change: give --lifetime, --key-type, --publish, --subscribe or --retain.")
    with attempting(f"changing model '{name}'"):
        changed = run(work())
    print_value(_shown(changed, output), output)


@model.command(name="list")
@home_option
@output_option
def list_(home: Path, output: str) -> None:
    """List the models."""

    async def work() -> list[Model]:
        async with opened(home) as fleet:
            return await fleet.registry.models()

    with attempting("listing the models"):
        found = run(work())
    rows = [tuple(_shown(m, output).values()) for m in found]
    print_rows(("name", "lifetime", "key_types", "publish", "subscribe", "retain"), rows, output)


@model.command()
@home_option
@click.argument("name")
@output_option
def show(home: Path, name: str, output: str) -> None:
    """Show the model NAME."""

    async def work() -> Model:
        async with opened(home) as fleet:
            found = await fleet.registry.model(name)
            if found is None:
                raise NotFound("no-such-model", f"There is no model {name!r}.", "See: fleet model list")
            return found

    with attempting(f"showing model '{name}'"):
        found = run(work())
    print_value(_shown(found, output), output)


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
