"""`fleet publish`: CRLs and CA certificates as files, for a web server or a CDN."""

import re
import ssl
from collections.abc import Mapping
from pathlib import Path

import click

from fleet.cli.errors import attempting
from fleet.cli.options import client_option
from fleet.cli.output import output_option, print_value
from fleet.client.client import Client, bad_answer, path_of
from fleet.config.durable_files import write_file
from fleet.domain.distribution import CA_NAME_PATTERN, CRL_KIND_PATTERN, PLAIN, ca_name, ca_path, crl_path
from fleet.wire.armor import unwrap


@click.command()
@client_option
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@output_option
def publish(client: Client, folder: Path, output: str) -> None:
    """Write every CRL and CA certificate into DIR, at the paths at which the publish listener serves them.

    A web server that has DIR as its root takes the listener's place, apart from OCSP. For programs that read files
    there are ca.pem, all CAs but the operators', crl.pem, a CRL of each, and trust.pem, both. Each file is replaced in
    one step; run it again as often as revocations are to be seen, and before the CRLs' nextUpdate.

    \b
    Example:
      fleet publish /srv/pki
    """
    from cryptography import x509

    from fleet.ca.crl import key_identifier_of

    with attempting(f"publishing into {folder}"):
        files: dict[str, bytes] = {}
        trusted: dict[str, str] = {}
        for each in client.get("/v1/authorities")["items"]:
            der = ssl.PEM_cert_to_DER_cert(each["pem"])
            name = ca_name(key_identifier_of(x509.load_der_x509_certificate(der)))
            files[ca_path(name)] = der
            if each["role"] != "operators":
                trusted[name] = each["pem"]
        plain = ""
        for head in client.items("/v1/crls"):
            pem = client.get(path_of("/v1/crls/{}/{}", head["ca"], head["crl"]))["pem"]
            files[_path(head)] = _der(pem)
            if head["crl"] == PLAIN and head["ca"] in trusted:
                plain += pem
        pems = {"ca.pem": "".join(trusted.values()), "crl.pem": plain, "trust.pem": "".join(trusted.values()) + plain}
        for path, data in (files | {name: pem.encode("ascii") for name, pem in pems.items()}).items():
            _write(folder, path, data)
    print_value({"folder": str(folder), "files": len(files) + len(pems)}, output)


def _path(head: Mapping[str, object]) -> str:
    """Its path beneath the folder, whatever a server says."""
    ca, kind = str(head["ca"]), str(head["crl"])
    if not re.search(CA_NAME_PATTERN, ca) or not re.search(CRL_KIND_PATTERN, kind):
        raise bad_answer("a CRL has no name that it could have")
    return crl_path(ca, kind)


def _der(pem: str) -> bytes:
    der = unwrap("".join(pem.splitlines()[1:-1]).encode())
    if der is None:
        raise bad_answer("a CRL is not PEM")
    return der


def _write(folder: Path, path: str, data: bytes) -> None:
    file = folder / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, data, secret=False, force=True)
