"""`fleet ca`: the fleet's certificate authorities."""

from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.view import CaCertificate
from fleet.cli.at_home import at_home_only
from fleet.cli.desk import Desk, fleet_option
from fleet.cli.errors import attempting
from fleet.cli.home import OPERATOR, home_option, opened, run, utc_now
from fleet.cli.output import output_option, print_rows, print_value
from fleet.cli.output_file import write_file
from fleet.domain.access import Act
from fleet.domain.errors import NotFound, Refused
from fleet.home.ca_store import Authority, fingerprint
from fleet.home.layout import settings_of
from fleet.home.pki import renew_server_certificate
from fleet.home.tenants import authority_of, forget_former, former_of, new_issuing_key
from fleet.services.tenancy import announce_forgetting, announce_rollover, end_what_is_in_use, still_in_use

_tenant = click.option("--tenant", default="", metavar="NAME", help="Of this tenant, in place of the fleet's own.")
_SIGNS = "the keys of CAs stay in the home"


@click.group()
def ca() -> None:
    """The fleet's certificate authorities: the root that devices trust, and the issuing CAs that it signs."""


@ca.command()
@fleet_option
@output_option
def show(desk: Desk, output: str) -> None:
    """List the CAs with their validity and fingerprints.

    A former CA signs no more; its certificates are still believed.
    """
    with attempting("reading the CAs"):
        found = [(each.role, each.certificate, each.tenant or None) for each in desk.authorities()]
    rows = [
        (role, c.subject.rfc4514_string(), c.not_valid_after_utc, c.fingerprint(hashes.SHA256()), tenant)
        for role, c, tenant in found
    ]
    print_rows(("role", "subject", "not_after", "sha256", "tenant"), rows, output)


@ca.command()
@fleet_option
@_tenant
@click.option("--chain", "whole", is_flag=True, help="The issuing CA too, after the root.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), default="-")
def export(desk: Desk, tenant: str, whole: bool, force: bool, out: Path) -> None:
    """Write out the root certificate.

    It is what devices trust, as PEM, to OUT (default: standard output). For a tenant with a root of its own, that is
    two: its own, and the fleet's, by which its devices know the server.

    No key is ever written. For other forms: fleet cert convert ca.pem ca.der
    """
    with attempting("exporting the CA"):
        chain = _chain(desk.authorities(), tenant, whole=whole)
        pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
        if str(out) == "-":
            click.echo(pem, nl=False)
        else:
            write_file(out, pem, secret=False, force=force)


def _chain(found: list[CaCertificate], tenant: str, *, whole: bool) -> list[x509.Certificate]:
    """What devices of `tenant` trust, and with `whole` what signs for them.

    Raises: NotFound (`no-such-tenant`).
    """
    signers = [each.certificate for each in found if each.tenant == tenant and each.role in ("issuing", "former")]
    if not signers:
        raise NotFound("no-such-tenant", f"There is no tenant {tenant[:80]!r}.", "See: fleet tenant list")
    roots = [each.certificate for each in found if each.tenant == tenant and each.role == "root"]
    roots += [each.certificate for each in found if not each.tenant and each.role == "root"]
    return [*dict.fromkeys(roots), *(signers if whole else ())]


@ca.command()
@at_home_only(_SIGNS)
@home_option
@_tenant
@click.option("--root", "root_too", is_flag=True, help="Under a new key of the root, too.")
@output_option
def rollover(home: Path, tenant: str, root_too: bool, output: str) -> None:
    """Make a new issuing CA under the same root, and sign with it from now on.

    Certificates of the one before stay good, and are renewed under the new one; its key signs no more. EST's cacerts
    hands out both. A fleet that is served follows at once, on this machine; on other nodes: copy HOME/ca and
    HOME/server there, and send the server SIGHUP. The root's key must be in the home for as long as this takes.

    With --root the root gets a new key under its name. Devices that trust the old root and devices that trust the new
    one both know the server and are known: cacerts hands out, and the server shows, what leads from one to the other
    (RFC 7030, 4.1.3). Give the new root to devices before the old one ends.

    When the last certificate of the one before has ended: fleet ca forget SHA256
    """

    async def work() -> tuple[Authority, str]:
        async with opened(home) as fleet:
            now = utc_now()
            before = fingerprint(authority_of(fleet.home, tenant).issuing)
            act = Act(OPERATOR, now)
            await announce_rollover(fleet.registry, tenant, sha256=before, root_too=root_too, act=act)
            made = new_issuing_key(fleet.home, tenant, now, root_too=root_too)
            if not tenant:
                renew_server_certificate(fleet.home, settings_of(fleet.home), now)
            return made, before

    with attempting(f"rolling over the issuing CA of '{tenant or home}'"):
        made, before = run(work())
    print_value(
        {
            "issuing": made.issuing.subject.rfc4514_string(),
            "not_after": made.issuing.not_valid_after_utc,
            "sha256": fingerprint(made.issuing),
            "former": before,
        },
        output,
    )


@ca.command()
@at_home_only(_SIGNS)
@home_option
@_tenant
@click.argument("sha256")
@click.option("--force", is_flag=True, help="Even when certificates of it are in use: they end now.")
@output_option
def forget(home: Path, tenant: str, sha256: str, force: bool, output: str) -> None:
    """Believe a former issuing CA no more, and remove its key.

    SHA256 is its fingerprint, as `fleet ca show` prints it. It is refused while a certificate of that CA is good.
    """

    async def work() -> tuple[x509.Certificate, int]:
        async with opened(home) as fleet:
            now = utc_now()
            former = former_of(fleet.home, tenant, wanted)
            held = None if force else await still_in_use(fleet.registry, former.subject.public_bytes(), now)
            if held is not None:
                raise Refused(
                    "ca-in-use",
                    f"A certificate of it is good until {held.not_after:%Y-%m-%d}, that of {held.kind} {held.holder}.",
                    "Wait until all have been renewed, or use --force.",
                )
            act, name = Act(OPERATOR, now), former.subject.public_bytes()
            await announce_forgetting(fleet.registry, tenant, sha256=wanted, act=act)
            # Before its belief ends: connections that were made while it was believed live on their certificate alone.
            ended = await end_what_is_in_use(fleet.registry, name, sha256=wanted, act=act) if force else 0
            return forget_former(fleet.home, tenant, wanted), ended

    wanted = sha256.lower().replace(":", "")
    with attempting("forgetting a former CA"):
        gone, ended = run(work())
    value = {"subject": gone.subject.rfc4514_string(), "sha256": wanted, "state": "forgotten"}
    print_value({**value, "certificates_ended": ended}, output)
