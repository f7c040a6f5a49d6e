"""`fleet tenant`: whose issuing CA signs which models' certificates."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from cryptography import x509

from fleet.ca.view import CaCertificate
from fleet.cli.at_home import at_home_only
from fleet.cli.desk import Desk, fleet_option
from fleet.cli.errors import attempting
from fleet.cli.home import OPERATOR, home_option, opened, run, utc_now
from fleet.cli.output import output_option, print_rows, print_value
from fleet.domain.access import Act
from fleet.domain.errors import Invalid, NotFound
from fleet.home.ca_store import Authority, fingerprint
from fleet.home.tenants import new_tenant
from fleet.services.tenancy import announce_tenant

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
    print_value(_Tenant(name, made.root, own_root, made.issuing, made.former).shown(), output)


@tenant.command(name="list")
@fleet_option
@output_option
def list_(desk: Desk, output: str) -> None:
    """List the tenants with their models."""
    with attempting("listing the tenants"):
        found, models = _tenants(desk.authorities()), desk.models()
        broken = desk.broken_tenants()
    rows = [
        (
            each.name,
            [model.name for model in models if model.rules.tenant == each.name],
            "own" if each.has_own_root else "the fleet's",
            each.issuing.not_valid_after_utc,
        )
        for each in found
    ]
    print_rows(("name", "models", "root", "not_after"), rows, output)
    for name, reason in broken.items():
        click.echo(f"Warning: the CA of tenant {name} cannot be read: {reason}", err=True)


@tenant.command()
@fleet_option
@click.argument("name")
@output_option
def show(desk: Desk, name: str, output: str) -> None:
    """Show the tenant NAME and its CA."""
    with attempting(f"showing tenant '{name}'"):
        found = next((each for each in _tenants(desk.authorities()) if each.name == name), None)
        broken = desk.broken_tenants()
        if name in broken:
            raise Invalid("tenant-damaged", f"The CA of tenant {name} cannot be read: {broken[name]}.")
        if found is None:
            raise NotFound("no-such-tenant", f"There is no tenant {name[:80]!r}.", "See: fleet tenant list")
    print_value(found.shown(), output)


@dataclass(frozen=True, slots=True)
class _Tenant:
    name: str
    root: x509.Certificate
    has_own_root: bool
    issuing: x509.Certificate
    former: tuple[x509.Certificate, ...]

    def shown(self) -> dict[str, object]:
        return {
            "name": self.name,
            "root": self.root.subject.rfc4514_string(),
            "own_root": self.has_own_root,
            "issuing": self.issuing.subject.rfc4514_string(),
            "not_after": self.issuing.not_valid_after_utc,
            "sha256": fingerprint(self.issuing),
            "former": [fingerprint(each) for each in self.former],
        }


def _tenants(shown: Sequence[CaCertificate]) -> list[_Tenant]:
    """Those that have a CA among `shown`, by name."""

    def of(role: str, tenant: str) -> tuple[x509.Certificate, ...]:
        return tuple(each.certificate for each in shown if (each.role, each.tenant) == (role, tenant))

    def tenant_of(name: str) -> _Tenant:
        own = of("root", name)
        return _Tenant(name, (own or of("root", ""))[0], bool(own), of("issuing", name)[0], of("former", name))

    return [tenant_of(name) for name in sorted({each.tenant for each in shown if each.tenant})]
