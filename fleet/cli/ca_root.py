"""`fleet ca sign`, `cross-sign` and `crl`: what a root signs by hand, in a home that may have no network."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet.cli.ca_options import OUT, SIGNS, force_option, write_out
from fleet.cli.errors import attempting
from fleet.cli.options import FILE, home_option

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from fleet.domain.access import Act
    from fleet.domain.ports import Registry


@click.command()
@home_option(SIGNS)
@click.option("--days", type=click.IntRange(1, 7300), default=3650, show_default=True, help="Its lifetime.")
@force_option
@click.argument("request", type=FILE)
@click.argument("out", type=OUT, default="-")
def sign(home: Path, days: int, force: bool, request: Path, out: Path) -> None:
    """Sign the issuing CA of another home with this one's root: REQUEST is what `fleet ca csr` wrote there, OUT what
    `fleet ca import` takes there.

    Nothing of the request counts but its common name and its key. OUT holds the CA, the root, what links it to roots
    before it, and the root's CRL if there is one.
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    from fleet.ca.key_identifiers import spki_sha256
    from fleet.home.authorities import authority_of
    from fleet.home.ca_store import fingerprint
    from fleet.home.layout import opened
    from fleet.home.root_signing import sign_authority
    from fleet.home.unix_user import act_now
    from fleet.runtime.jobs.crls import root_crl

    async def work() -> "tuple[Certificate, bytes]":
        async with opened(home) as (place, registry):
            act = act_now()
            made, pem = sign_authority(place, data, days, act.now)
            await _announce(registry, "ca.sign", made, act=act)
            crl = await root_crl(registry, authority_of(place, "").root)
            return made, pem + (crl.public_bytes(Encoding.PEM) if crl is not None else b"")

    with attempting(f"signing '{request}'"):
        data = request.read_bytes()
        made, answer = asyncio.run(work())
        write_out(out, answer, force=force)
    click.echo(f"SHA-256 of its key: {spki_sha256(made.public_key()).hex()}", err=True)
    click.echo(f"SHA-256 of the certificate: {fingerprint(made)}", err=True)
    click.echo("Take the answer to the home of the request, then there: fleet ca import FILE", err=True)


@click.command(name="cross-sign")
@home_option(SIGNS)
@force_option
@click.argument("root", type=FILE)
@click.argument("out", type=OUT, default="-")
def cross_sign_(home: Path, force: bool, root: Path, out: Path) -> None:
    """Sign another root CA with this home's: clients that trust this root alone then verify what is below that one, if
    OUT is in the chain that they get or know.

    ROOT holds its certificate: PEM, DER or PKCS#7. Its key is not needed.
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    from fleet.home.layout import opened
    from fleet.home.root_signing import cross_sign
    from fleet.home.unix_user import act_now

    async def work() -> bytes:
        async with opened(home) as (place, registry):
            act = act_now()
            made = cross_sign(place, data, act.now)
            await _announce(registry, "ca.cross-sign", made, act=act)
            return made.public_bytes(Encoding.PEM)

    with attempting(f"cross-signing '{root}'"):
        data = root.read_bytes()
        write_out(out, asyncio.run(work()), force=force)


@click.command()
@home_option(SIGNS)
@click.option("--days", type=click.IntRange(1, 731), default=365, show_default=True, help="Until its nextUpdate.")
@click.option(
    "--revoke", "revoked", type=FILE, multiple=True, help="A CA certificate that this root has signed; may be repeated."
)
@force_option
@click.argument("out", type=OUT, default="-")
def crl(home: Path, days: int, revoked: tuple[Path, ...], force: bool, out: Path) -> None:
    """Sign the root's own CRL, of the CAs that it has signed, and write it to OUT, PEM.

    What an earlier one lists stays listed. Where this home is served or published, that CRL is. Relying parties that
    check the whole chain need it, beside the CRLs of the issuing CAs, which servers make by themselves.
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    from fleet.home.layout import opened
    from fleet.home.root_signing import read_revoked
    from fleet.home.unix_user import act_now
    from fleet.runtime.jobs.crls import sign_root_crl

    async def work() -> bytes:
        async with opened(home) as (place, registry):
            act = act_now()
            certificates = read_revoked(place, files)
            made = await sign_root_crl(place, registry, certificates, days, act.now)
            for each in certificates:
                await _announce(registry, "ca.revoke", each, act=act)
            return made.public_bytes(Encoding.PEM)

    with attempting(f"signing the CRL of the root of '{home}'"):
        files = [file.read_bytes() for file in revoked]
        write_out(out, asyncio.run(work()), force=force)


async def _announce(registry: "Registry", action: str, made: "Certificate", *, act: "Act") -> None:
    from fleet.home.ca_store import fingerprint
    from fleet.services.tenancy import announce_signing

    name = made.subject.rfc4514_string()
    await announce_signing(registry, action, name=name, sha256=fingerprint(made), act=act)
