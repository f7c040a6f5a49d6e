"""`fleet tenant`: issuing CAs for separate owners of models."""

import asyncio
from pathlib import Path

import click

from fleet.cli.errors import attempting
from fleet.cli.options import client_at, client_option, home_option
from fleet.cli.output import Row, output_option, print_rows, print_value
from fleet.cli.parameters import TENANT
from fleet.client.client import Client
from fleet.domain.ca_role import CaRole
from fleet.domain.errors import Invalid, no_such

COLUMNS = ("name", "models", "root", "not_after")


@click.group()
def tenant() -> None:
    """Tenants: an issuing CA for each, so that a certificate of one is not accepted for another.

    A model belongs to a tenant by `fleet model add --tenant NAME`. EST serves it under the label NAME as well:
    https://HOST:8443/.well-known/est/NAME/simpleenroll. For a new CA key: fleet ca rollover --tenant NAME.
    """


@tenant.command()
@home_option("a tenant is a CA, and CA keys stay in the home")
@click.argument("name", type=TENANT)
@click.option("--own-root", is_flag=True, help="Under its own root CA, in place of the fleet's.")
@output_option
def add(home: Path, name: str, own_root: bool, output: str) -> None:
    """Make an issuing CA for the tenant NAME.

    A running server on this machine signs with it at once. On other nodes: copy HOME/ca there, and send the
    server SIGHUP.

    \b
    Example:
      fleet tenant add acme
      fleet model add acme-cam --tenant acme
      fleet ca export --tenant acme acme.pem
    """
    from fleet.home.authorities import new_tenant
    from fleet.home.ca_store import fingerprint
    from fleet.home.layout import opened
    from fleet.home.unix_user import act_now
    from fleet.services.tenancy import announce_tenant

    async def work() -> None:
        async with opened(home) as (place, registry):
            act = act_now()
            with new_tenant(place, name, own_root=own_root, now=act.now) as made:
                sha256 = fingerprint(made.issuing)
                await announce_tenant(registry, name, sha256=sha256, own_root=own_root, act=act)

    with attempting(f"adding tenant '{name}'"):
        asyncio.run(work())
        with client_at(home) as client:
            made = _tenants(client)[name]
    print_value(made, output)


@tenant.command(name="list")
@client_option
@output_option
def list_(client: Client, output: str) -> None:
    """List the tenants with their models."""
    with attempting("listing the tenants"):
        tenants, models = _tenants(client), client.all_items("/v1/models")
        broken = _broken_tenants(client)
        rows = [
            {
                "name": each["name"],
                "models": [model["name"] for model in models if model["tenant"] == each["name"]],
                "root": "own" if each["own_root"] else "the fleet's",
                "not_after": each["not_after"],
            }
            for each in tenants.values()
        ]
    print_rows(COLUMNS, rows, output)
    for name, reason in broken.items():
        click.echo(f"Warning: the CA of tenant {name} cannot be read: {reason}", err=True)


@tenant.command()
@client_option
@click.argument("name", type=TENANT)
@output_option
def show(client: Client, name: str, output: str) -> None:
    """Show the tenant NAME and its CA."""
    with attempting(f"showing tenant '{name}'"):
        found = _tenants(client).get(name)
        broken = _broken_tenants(client)
        if name in broken:
            raise Invalid("tenant-damaged", f"The CA of tenant {name} cannot be read: {broken[name]}.")
        if found is None:
            raise no_such("tenant", name)
    print_value(found, output)


def _broken_tenants(client: Client) -> dict[str, str]:
    """Tenants whose CA cannot be read, each with the reason: known at the home; a server has them in its log."""
    if client.home is None:
        return {}
    from fleet.home.authorities import read_authorities
    from fleet.home.layout import open_home

    return dict(read_authorities(open_home(client.home)).broken)


def _tenants(client: Client) -> dict[str, Row]:
    """Tenants with a CA, by name."""
    shown: list[Row] = client.get("/v1/authorities")["items"]

    def of(role: CaRole, tenant: str) -> list[Row]:
        return [each for each in shown if (each["role"], each["tenant"]) == (role, tenant)]

    def tenant_of(name: str) -> Row:
        own, issuing = of(CaRole.ROOT, name), of(CaRole.ISSUING, name)[0]
        return {
            "name": name,
            "root": (own or of(CaRole.ROOT, ""))[0]["subject"],
            "own_root": bool(own),
            "issuing": issuing["subject"],
            "not_after": issuing["not_after"],
            "sha256": issuing["sha256"],
            "former": [each["sha256"] for each in of(CaRole.FORMER, name)],
        }

    return {name: tenant_of(name) for name in sorted({each["tenant"] for each in shown} - {""})}
