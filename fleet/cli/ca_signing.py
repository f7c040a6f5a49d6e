"""`fleet ca csr`, `import`, `sign`, `cross-sign` and `crl`: an issuing CA below a corporate or offline root, and what a
root signs by hand, in a home that may have no network.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet.cli.errors import attempting
from fleet.cli.options import FILE, home_option
from fleet.cli.output import output_option, print_value
from fleet.cli.parameters import TENANT_IF_ANY
from fleet.config.durable_files import write_file
from fleet.config.small_files import read_argument
from fleet.config.streams import printable
from fleet.domain.errors import Invalid

if TYPE_CHECKING:
    from cryptography.x509 import Certificate, CertificateRevocationList

    from fleet.domain.access import Act
    from fleet.domain.ports import Registry
    from fleet.home.ca_store import Authority
    from fleet.home.layout import Home

SIGNS = "CA keys stay in the home"
"""Why a command takes no --url."""
IMPORTED_SIZE_MAX = 16_777_216  # a CRL of 100,000 entries has 5.3 MB as PEM
OUT = click.Path(path_type=Path, dir_okay=False, allow_dash=True)

tenant_option = click.option(
    "--tenant", default="", metavar="NAME", type=TENANT_IF_ANY, help="Of this tenant, in place of the fleet's own."
)
force_option = click.option("--force", is_flag=True, help="Replace OUT if it is there.")


def write_out(out: Path, pem: bytes, *, force: bool) -> None:
    """`pem` to the file, or to standard output for "-"."""
    if str(out) == "-":
        click.echo(printable(pem.decode(), keep="\n"), nl=False)
    else:
        write_file(out, pem, secret=False, force=force)


@click.command(name="csr")
@home_option(SIGNS)
@tenant_option
@click.option("--name", default="", metavar="TEXT", help="Common name of the CA; default: as a rollover names it.")
@click.option("--new-tenant", is_flag=True, help="The tenant is new: it is made when the answer is imported.")
@click.option("--new-key", is_flag=True, help="Forget the key of an earlier request that was not answered.")
@force_option
@click.argument("out", type=OUT, default="-")
def csr_(home: Path, tenant: str, name: str, new_tenant: bool, new_key: bool, force: bool, out: Path) -> None:
    """Write a request (PKCS#10) for the next issuing CA, to be signed by a corporate or offline root, to OUT.

    The key stays in the home, and the present CA goes on signing until the answer is imported: fleet ca import. Until
    then the request is repeated for the same key.

    \b
    The signer makes of it: CA:TRUE with path length 0, key usage keyCertSign and cRLSign, a subject key identifier.
    Our own root does that with: fleet ca sign
    """
    from cryptography.x509 import load_pem_x509_csr

    from fleet.ca.key_identifiers import spki_sha256
    from fleet.home.imported_ca import request_issuing, request_tenant
    from fleet.home.layout import open_home

    if new_tenant and not tenant:
        raise click.UsageError("--new-tenant goes with --tenant NAME.")
    make = request_tenant if new_tenant else request_issuing
    with attempting(f"making a request for an issuing CA of '{tenant or home}'"):
        request = make(open_home(home), tenant, name=name, new_key=new_key)
        write_out(out, request, force=force)
    click.echo(f"SHA-256 of its key: {spki_sha256(load_pem_x509_csr(request).public_key()).hex()}", err=True)
    of_tenant = f" --tenant {tenant}" if tenant else ""
    click.echo(f"Have it signed (fleet ca sign), then: fleet ca import{of_tenant} FILE", err=True)


@click.command(name="import")
@home_option(SIGNS)
@tenant_option
@click.option(
    "--force", is_flag=True, help="Even if clients that trust the present root alone could no longer verify the server."
)
@click.argument("file", type=FILE)
@output_option
def import_(home: Path, tenant: str, force: bool, file: Path, output: str) -> None:
    """Issue from the CA that the request of `fleet ca csr` was answered with. FILE holds its chain up to the root, in
    any order: PEM, DER or PKCS#7; CRLs of the CAs above it may be with it. A FILE with such CRLs alone replaces those
    before; the publish listener serves them.

    The chain is verified before anything changes: key, dates, basic constraints, path lengths, key usages, signatures,
    and name constraints, which have to allow the server's hosts and the names of every model's devices. The CA before
    is kept as after a rollover: its certificates stay valid, and are renewed under the new one.

    If the root is another than before, the present root, whose key must be in the home, signs the new one: clients that
    trust the present root alone go on verifying the server. Its key may then be removed. Get the new root to all
    devices before the present one expires (`fleet ca export`).
    """
    from fleet.home.authorities import authority_of
    from fleet.home.ca_store import fingerprint
    from fleet.home.crl_issuing import import_root_crl
    from fleet.home.imported_ca import import_chain, is_requested, read_crls, read_import
    from fleet.home.layout import opened, settings_of
    from fleet.home.pki import renew_server_certificate
    from fleet.home.unix_user import act_now
    from fleet.services.tenancy import announce_import

    async def work() -> "tuple[Authority | None, Authority] | list[CertificateRevocationList]":
        async with opened(home) as (place, registry):
            act = act_now()
            if is_requested(place, tenant):
                return None, await _new_tenant(place, registry, tenant, data, act)
            crls = read_crls(place, tenant, data)
            for ca, crl in crls:
                if not await import_root_crl(place, registry, ca, crl, act.now):
                    raise Invalid("bad-chain", "The CRL is refused: a newer one is here.", "Give the newest.")
            if crls:
                return [crl for _, crl in crls]
            before = authority_of(place, tenant)
            models = [each for each in await registry.models() if tenant in each.rules.signers]
            made = read_import(place, tenant, data, {each.name: each.rules.profile for each in models}, act.now)
            ends, new, root = (fingerprint(each) for each in (before.issuing, made.chain[0], made.chain[-1]))
            await announce_import(registry, tenant, ends=ends, sha256=new, root=root, act=act)
            after = import_chain(place, tenant, made, act.now, force=force)
            if not tenant:
                renew_server_certificate(place, settings_of(place), act.now)
            for ca, crl in made.crls:
                await import_root_crl(place, registry, ca, crl, act.now)
            return before, after

    with attempting(f"importing the issuing CA of '{tenant or home}'"):
        data = read_argument(file, IMPORTED_SIZE_MAX)
        done = asyncio.run(work())
    if not isinstance(done, tuple):
        for crl in done:
            print_value({"crl": crl.issuer.rfc4514_string(), "revoked": len(crl), "until": crl.next_update_utc}, output)
        return
    print_value(_imported(*done), output)
    if not asyncio.run(_root_crl_is_here(home, done[1])):
        advice = "Have it signed there (fleet ca crl), then: fleet ca import FILE"
        click.echo(f"The CRL of its root is not here, which relying parties may need. {advice}", err=True)


async def _root_crl_is_here(home: Path, made: "Authority") -> bool:
    """Whether the CRL of the root above `made` is published here, or will be, by the root's own key."""
    from fleet.home.crl_issuing import root_crl
    from fleet.home.layout import opened

    async with opened(home) as (place, registry):
        return place.root_key.exists() or await root_crl(registry, made.root) is not None


async def _new_tenant(place: "Home", registry: "Registry", tenant: str, data: bytes, act: "Act") -> "Authority":
    from fleet.home.ca_store import fingerprint
    from fleet.home.crl_issuing import import_root_crl
    from fleet.home.imported_ca import imported_tenant, read_new_tenant
    from fleet.services.tenancy import announce_tenant

    made = read_new_tenant(place, tenant, data, act.now)
    with imported_tenant(place, tenant, made) as after:
        sha256, own_root = fingerprint(after.issuing), made.root is not None
        await announce_tenant(registry, tenant, sha256=sha256, own_root=own_root, act=act)
    for ca, crl in made.crls:
        await import_root_crl(place, registry, ca, crl, act.now)
    return after


def _imported(before: "Authority | None", after: "Authority") -> dict[str, object]:
    from fleet.home.ca_store import fingerprint

    return {
        "issuing": after.issuing.subject.rfc4514_string(),
        "not_after": after.issuing.not_valid_after_utc,
        "sha256": fingerprint(after.issuing),
        "chain": [each.subject.rfc4514_string() for each in (*after.above, after.root)],
        "former": fingerprint(before.issuing) if before is not None else None,
        "root_sha256": fingerprint(after.root),
        "former_root": fingerprint(before.root) if before is not None and before.root != after.root else None,
    }


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
    from fleet.home.crl_issuing import root_crl
    from fleet.home.layout import opened
    from fleet.home.root_signing import sign_authority
    from fleet.home.unix_user import act_now

    async def work() -> "tuple[Certificate, bytes]":
        async with opened(home) as (place, registry):
            act = act_now()
            made, pem = sign_authority(place, data, days, act.now)
            await _announce(registry, "ca.sign", made, act=act)
            crl = await root_crl(registry, authority_of(place, "").root)
            return made, pem + (crl.public_bytes(Encoding.PEM) if crl is not None else b"")

    with attempting(f"signing '{request}'"):
        data = read_argument(request)
        made, answer = asyncio.run(work())
        write_out(out, answer, force=force)
    click.echo(f"SHA-256 of its key: {spki_sha256(made.public_key()).hex()}", err=True)
    click.echo(f"SHA-256 of the certificate: {fingerprint(made)}", err=True)
    click.echo("Take the answer to the home of the request, then there: fleet ca import FILE", err=True)
    click.echo("For a tenant's request: fleet ca import --tenant NAME FILE", err=True)


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
        data = read_argument(root)
        write_out(out, asyncio.run(work()), force=force)


@click.command()
@home_option(SIGNS)
@click.option("--days", type=click.IntRange(1, 731), default=365, show_default=True, help="Until its nextUpdate.")
@click.option(
    "--revoke", "revoked", type=FILE, multiple=True, help="A CA certificate that the root has signed; may be repeated."
)
@force_option
@click.argument("out", type=OUT, default="-")
def crl(home: Path, days: int, revoked: tuple[Path, ...], force: bool, out: Path) -> None:
    """Sign the root's own CRL, of the CAs that it has signed, and write it to OUT, PEM; with --revoke, that of the
    former root where that one has signed them.

    What an earlier one lists stays listed. Where this home is served or published, that CRL is. Relying parties that
    check the whole chain need it, beside the CRLs of the issuing CAs, which servers make by themselves.
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    from fleet.home.crl_issuing import sign_root_crl
    from fleet.home.layout import opened
    from fleet.home.root_signing import read_revoked
    from fleet.home.unix_user import act_now

    async def work() -> bytes:
        async with opened(home) as (place, registry):
            act = act_now()
            certificates = read_revoked(place, files)
            made = await sign_root_crl(place, registry, certificates, days, act.now)
            for each in certificates:
                await _announce(registry, "ca.revoke", each, act=act)
            return made.public_bytes(Encoding.PEM)

    with attempting(f"signing the CRL of the root of '{home}'"):
        files = [read_argument(file) for file in revoked]
        write_out(out, asyncio.run(work()), force=force)


async def _announce(registry: "Registry", action: str, made: "Certificate", *, act: "Act") -> None:
    from fleet.home.ca_store import fingerprint
    from fleet.services.tenancy import announce_signing

    name = made.subject.rfc4514_string()
    await announce_signing(registry, action, name=name, sha256=fingerprint(made), act=act)
