"""`fleet ca csr` and `fleet ca import`: an issuing CA below a corporate or offline root."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet.cli.ca_options import OUT, SIGNS, force_option, tenant_option, write_out
from fleet.cli.errors import attempting
from fleet.cli.options import FILE, home_option
from fleet.cli.output import output_option, print_value
from fleet.domain.errors import Invalid

if TYPE_CHECKING:
    from cryptography.x509 import CertificateRevocationList

    from fleet.home.ca_store import Authority


@click.command(name="csr")
@home_option(SIGNS)
@tenant_option
@click.option("--name", default="", metavar="TEXT", help="Common name of the CA; default: as a rollover names it.")
@click.option("--new-key", is_flag=True, help="Forget the key of an earlier request that was not answered.")
@force_option
@click.argument("out", type=OUT, default="-")
def csr_(home: Path, tenant: str, name: str, new_key: bool, force: bool, out: Path) -> None:
    """Write a request (PKCS#10) for the next issuing CA, to be signed by a corporate or offline root, to OUT.

    The key stays in the home, and the present CA goes on signing until the answer is imported: fleet ca import. Until
    then the request is repeated for the same key.

    \b
    The signer makes of it: CA:TRUE with path length 0, key usage keyCertSign and cRLSign, a subject key identifier.
    Our own root does that with: fleet ca sign
    """
    from cryptography.x509 import load_pem_x509_csr

    from fleet.ca.key_identifiers import spki_sha256
    from fleet.home.imported_ca import request_issuing
    from fleet.home.layout import open_home

    with attempting(f"making a request for an issuing CA of '{tenant or home}'"):
        request = request_issuing(open_home(home), tenant, name=name, new_key=new_key)
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
    from fleet.home.imported_ca import import_chain, read_crls, read_import
    from fleet.home.layout import opened, settings_of
    from fleet.home.pki import renew_server_certificate
    from fleet.home.unix_user import act_now
    from fleet.runtime.jobs.crls import import_root_crl
    from fleet.services.tenancy import announce_import

    async def work() -> "tuple[Authority, Authority] | list[CertificateRevocationList]":
        async with opened(home) as (place, registry):
            act = act_now()
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
        data = file.read_bytes()
        done = asyncio.run(work())
    if not isinstance(done, tuple):
        for crl in done:
            print_value({"crl": crl.issuer.rfc4514_string(), "revoked": len(crl), "until": crl.next_update_utc}, output)
        return
    print_value(_imported(*done), output)


def _imported(before: "Authority", after: "Authority") -> dict[str, object]:
    from fleet.home.ca_store import fingerprint

    return {
        "issuing": after.issuing.subject.rfc4514_string(),
        "not_after": after.issuing.not_valid_after_utc,
        "sha256": fingerprint(after.issuing),
        "chain": [each.subject.rfc4514_string() for each in (*after.above, after.root)],
        "former": fingerprint(before.issuing),
        "root_sha256": fingerprint(after.root),
        "former_root": fingerprint(before.root) if before.root != after.root else None,
    }
