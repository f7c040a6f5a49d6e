"""`fleet tenant`: whose issuing CA signs which models' certificates."""

from pathlib import Path

import click

from fleet.cli.at_home import at_home_only
from fleet.cli.errors import attempting
from fleet.cli.home import OPERATOR, home_option, opened, run, utc_now
from fleet.cli.output import output_option, print_rows, print_value
from fleet.domain.access import Act
from fleet.domain.device import Model
from fleet.home import open_home
from fleet.issuing_folder import Authority, fingerprint
from fleet.services.tenancy import announce_tenant
from fleet.tenants import Authorities, found_tenant, new_tenant, read_authorities

_WHY = "a tenant is a CA, and the keys of CAs stay in the home"


@click.group()
def tenant() -> None:
    """Tenants: an issuing CA for each, so that a certificate of one is worth nothing at another.

    A model belongs to a tenant by `fleet model add --tenant NAME`. EST serves it under the label NAME as well:
    https://HOST:8443/.well-known/est/NAME/simpleenroll. For a new key, or an end: fleet ca rollover --tenant NAME.
    """


@tenant.command()
@at_home_only(_WHY)
@home_option
@click.argument("name")
@click.option("--own-root", is_flag=True, help="Under a root of its own, in place of the fleet's.")
@output_option
def add(home: Path, name: str, own_root: bool, output: str) -> None:
    """Make an issuing CA for the tenant NAME.

    A fleet that is served signs with it at once, on this machine. On other nodes: copy HOME/ca there, and send the
    server SIGHUP.

    \b
    Example:
      fleet tenant add acme
      fleet model add acme-cam --tenant acme
      fleet ca export --tenant acme acme.pem
    """

    async def work() -> Authority:
        async with opened(home) as fleet:
            now = utc_now()
            with new_tenant(fleet.home, name, own_root=own_root, now=now) as made:
                sha256 = fingerprint(made.issuing)
                await announce_tenant(fleet.registry, name, sha256=sha256, own_root=own_root, act=Act(OPERATOR, now))
            return made

    with attempting(f"adding tenant '{name}'"):
        made = run(work())
    print_value(_shown(made, own_root), output)


@tenant.command(name="list")
@at_home_only(_WHY)
@home_option
@output_option
def list_(home: Path, output: str) -> None:
    """List the tenants with their models."""

    async def work() -> tuple[Authorities, list[Model]]:
        async with opened(home) as fleet:
            return read_authorities(fleet.home), await fleet.registry.models()

    with attempting("listing the tenants"):
        found, models = run(work())
    rows = [
        (
            name,
            [model.name for model in models if model.rules.tenant == name],
            "own" if each.root != found.own.root else "the fleet's",
            each.issuing.not_valid_after_utc,
        )
        for name, each in found.tenants.items()
    ]
    print_rows(("name", "models", "root", "not_after"), rows, output)
    for name, reason in found.broken.items():
        click.echo(f"Warning: the CA of tenant {name} cannot be read: {reason}", err=True)


@tenant.command()
@at_home_only(_WHY)
@home_option
@click.argument("name")
@output_option
def show(home: Path, name: str, output: str) -> None:
    """Show the tenant NAME and its CA."""
    with attempting(f"showing tenant '{name}'"):
        place = open_home(home)
        found = found_tenant(place, name)
        own_root = found.root != read_authorities(place).own.root
    print_value(_shown(found, own_root), output)


def _shown(found: Authority, own_root: bool) -> dict[str, object]:
    return {
        "name": found.tenant,
        "root": found.root.subject.rfc4514_string(),
        "own_root": own_root,
        "issuing": found.issuing.subject.rfc4514_string(),
        "not_after": found.issuing.not_valid_after_utc,
        "sha256": fingerprint(found.issuing),
        "former": [fingerprint(each) for each in found.former],
    }
