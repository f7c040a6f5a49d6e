"""`fleet ca`: the fleet's certificate authorities."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet.cli.ca_check import check
from fleet.cli.ca_signing import (
    OUT,
    SIGNS,
    crl,
    cross_sign_,
    csr_,
    force_option,
    import_,
    sign,
    tenant_option,
    write_out,
)
from fleet.cli.errors import attempting
from fleet.cli.options import client_option, home_option
from fleet.cli.output import Column, Row, output_option, print_rows, print_value
from fleet.cli.parameters import SHA256
from fleet.client.client import Client
from fleet.domain.ca_role import ISSUES_TO_DEVICES, CaRole
from fleet.domain.errors import no_such

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

ROLES = {CaRole.FORMER: "former issuing"}
"""Names for people of roles that are called otherwise in JSON."""
COLUMNS = (
    Column("role", format=lambda role: ROLES.get(role, role)),
    "subject",
    "not_after",
    "sha256",
    "tenant",
    "key_here",
    "key_id",
)


@click.group()
def ca() -> None:
    """The fleet's certificate authorities: the root that devices trust, and the issuing CAs that it signs."""


for _command in (csr_, import_, sign, cross_sign_, crl, check):
    ca.add_command(_command)


@ca.command()
@client_option
@output_option
def show(client: Client, output: str) -> None:
    """List the CAs with their validity and fingerprints.

    A former CA issues no more certificates; those that it issued are still accepted. A serving home needs the keys of
    its issuing CAs, and none of a root: `key here` says which are there. A root's key is safest in a home without a
    network.
    """
    with attempting("reading the CAs"):
        authorities = client.get("/v1/authorities")["items"]
    print_rows(COLUMNS, [{**each, "tenant": each["tenant"] or None} for each in authorities], output)


@ca.command()
@client_option
@tenant_option
@click.option("--chain", "whole", is_flag=True, help="Append the issuing CA.")
@force_option
@click.argument("out", type=OUT, default="-")
def export(client: Client, tenant: str, whole: bool, force: bool, out: Path) -> None:
    """Export the root certificate that devices trust, as PEM, to OUT (default: standard output).

    For a tenant with its own root CA: two, its own and the fleet's, which its devices verify the server with.

    No key is ever written. For other forms: fleet cert convert ca.pem ca.der
    """
    with attempting("exporting the CA"):
        authorities = client.get("/v1/authorities")["items"]
        pem = "".join(each["pem"] for each in _chain(authorities, tenant, whole=whole))
        write_out(out, pem.encode(), force=force)


def _chain(authorities: Sequence[Row], tenant: str, *, whole: bool) -> list[Row]:
    """What devices of `tenant` trust; with `whole`, and what issues to them. Raises: NotFound (`no-such-tenant`)."""
    issuers = [each for each in authorities if each["tenant"] == tenant and each["role"] in ISSUES_TO_DEVICES]
    if not issuers:
        raise no_such("tenant", tenant)
    roots = [each for each in authorities if each["role"] == CaRole.ROOT and each["tenant"] == tenant]
    if tenant:
        roots += [each for each in authorities if each["role"] == CaRole.ROOT and not each["tenant"]]
    return [*roots, *(issuers if whole else ())]


@ca.command()
@home_option(SIGNS)
@tenant_option
@click.option("--root", "root_too", is_flag=True, help="Give the root a new key as well.")
@output_option
def rollover(home: Path, tenant: str, root_too: bool, output: str) -> None:
    """Create a new issuing CA, or with --root a new root too, and issue from it from now on.

    Certificates issued by the former CA stay valid, and are renewed under the new one. EST's cacerts returns both CAs.
    Servers on this machine follow within 20 ms; on other nodes, copy HOME/ca and HOME/server there and send the server
    SIGHUP. The root's key must be in the home during the rollover.

    With --root, the root gets a new key under the same name. cacerts and the server's chain contain the certificates
    that link the old root and the new one (RFC 7030, 4.1.3), so devices that trust either verify the server. Get the
    new root, whose fingerprint is printed as root_sha256, to all devices before the old one expires.

    Once the last certificate of the former CA has expired: fleet ca forget SHA256
    """
    from fleet.home.authorities import authority_of, new_issuing_key
    from fleet.home.ca_store import Authority, fingerprint
    from fleet.home.layout import opened, settings_of
    from fleet.home.pki import renew_server_certificate
    from fleet.home.unix_user import act_now
    from fleet.services.tenancy import announce_rollover

    async def work() -> tuple[Authority, Authority]:
        async with opened(home) as (place, registry):
            act = act_now()
            before = authority_of(place, tenant)
            root = fingerprint(before.root) if root_too else ""
            await announce_rollover(registry, tenant, sha256=fingerprint(before.issuing), root=root, act=act)
            made = new_issuing_key(place, tenant, act.now, root_too=root_too)
            if not tenant:
                renew_server_certificate(place, settings_of(place), act.now)
            return made, before

    with attempting(f"rolling over the issuing CA of '{tenant or home}'"):
        made, before = asyncio.run(work())
    print_value(
        {
            "issuing": made.issuing.subject.rfc4514_string(),
            "not_after": made.issuing.not_valid_after_utc,
            "sha256": fingerprint(made.issuing),
            "former": fingerprint(before.issuing),
            "root_sha256": fingerprint(made.root) if root_too else None,
            "former_root": fingerprint(before.root) if root_too else None,
        },
        output,
    )


@ca.command()
@home_option(SIGNS)
@tenant_option
@click.argument("sha256", type=SHA256)
@click.option(
    "--force",
    is_flag=True,
    help="Even while certificates are valid: those issued by a former issuing CA are refused from now on.",
)
@output_option
def forget(home: Path, tenant: str, sha256: str, force: bool, output: str) -> None:
    """Stop trusting a former issuing CA or a former root, and remove its key.

    SHA256 is its fingerprint, as `fleet ca show` prints it. Refused while a certificate issued by that CA, or below
    that root, is valid: a device that has not renewed since a rollover may trust no other root. With --force, a root is
    removed all the same, and its devices' certificates stay valid.

    An issuing CA's key first signs its CRLs once more, valid until the CA's own end: certificates that were ended, or
    revoked before, stay refused by relying parties. The root that has signed it lists it in its own CRL, where that
    root's key is here.

    Clients that trust no other root than a forgotten one can no longer verify the server: give them the present root
    before (`fleet ca export`). `device-agent` gets it with its renewal; others, such as curl or a bridge, do not.
    """
    from fleet.domain.errors import Refused
    from fleet.home.authorities import forget_former, former_of, issuers_below
    from fleet.home.crl_issuing import revoke_ca, sign_last_crls
    from fleet.home.layout import opened, settings_of
    from fleet.home.pki import renew_server_certificate
    from fleet.home.unix_user import act_now
    from fleet.services.tenancy import announce_forgetting, end_what_is_in_use, still_in_use

    async def work() -> tuple["Certificate", int, bool, bool]:
        async with opened(home) as (place, registry):
            act = act_now()
            former = former_of(place, tenant, sha256)
            names = [each.subject.public_bytes() for each in issuers_below(place, former)]
            for name in () if force else names:
                held = await still_in_use(registry, name, act.now)
                if held is not None:
                    raise Refused(
                        "ca-in-use",
                        f"A certificate of it is valid until {held.not_after:%Y-%m-%d}, "
                        f"that of {held.kind} {held.holder}.",
                        "Wait until all have been renewed, or use --force.",
                    )
            await announce_forgetting(registry, tenant, sha256=sha256, act=act)
            ended, is_issuer = 0, former.subject.public_bytes() in names
            if force and is_issuer:
                # While it is still trusted: connections that are open depend on the state of their certificate alone.
                ended = await end_what_is_in_use(registry, names[0], sha256=sha256, act=act)
            is_listed = not is_issuer or await sign_last_crls(place, registry, former, act.now)
            is_revoked = not is_issuer or await revoke_ca(place, registry, former, act.now)
            forget_former(place, tenant, sha256, act.now)
            if not tenant:
                renew_server_certificate(place, settings_of(place), act.now)  # its chain may have held it
            return former, ended, is_listed, is_revoked

    with attempting("forgetting a former CA"):
        former, ended, is_listed, is_revoked = asyncio.run(work())
    subject = former.subject.rfc4514_string()
    value = {"subject": subject, "sha256": sha256, "state": "forgotten", "certificates_ended": ended}
    print_value(value, output)
    _warn_of_relying_parties(former, is_listed=is_listed, is_revoked=is_revoked)


def _warn_of_relying_parties(former: "Certificate", *, is_listed: bool, is_revoked: bool) -> None:
    """Say what relying parties do not learn of a CA that is forgotten."""
    if not is_revoked:
        click.echo(
            "The key of the root that has signed it is not here to revoke it: relying parties accept what a copy of "
            f"the CA's key signs. Have that root's CRL list the serial number {former.serial_number:x}; where the root "
            "is a home's: fleet ca crl --revoke",
            err=True,
        )
    if not is_listed:
        click.echo(
            "Its key was not here to sign its CRL once more: relying parties learn of no certificate ended.", err=True
        )
