"""`fleet ca`: the fleet's certificate authorities."""

from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.authorities import authority_chain
from fleet.cli.errors import attempting
from fleet.cli.home import home_option
from fleet.cli.output import output_option, print_rows
from fleet.cli.output_file import write_file
from fleet.home import open_home


@click.group()
def ca() -> None:
    """The fleet's certificate authorities: the root that devices trust, and the issuing CA that it signs."""


@ca.command()
@home_option
@output_option
def show(home: Path, output: str) -> None:
    """List the CAs with their validity and fingerprints."""
    with attempting(f"reading the CAs of '{home}'"):
        chain = authority_chain(open_home(home))
    rows = [
        (_role(c), c.subject.rfc4514_string(), c.not_valid_after_utc, c.fingerprint(hashes.SHA256())) for c in chain
    ]
    print_rows(("role", "subject", "not_after", "sha256"), rows, output)


@ca.command()
@home_option
@click.option("--chain", "whole", is_flag=True, help="The issuing CA too, after the root.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), default="-")
def export(home: Path, whole: bool, force: bool, out: Path) -> None:
    """Write out the root certificate.

    It is what devices trust, as PEM, to OUT (default: standard output).

    No key is ever written. For other forms: fleet cert convert ca.pem ca.der
    """
    with attempting(f"exporting the CA of '{home}'"):
        shown = authority_chain(open_home(home))[: None if whole else 1]
        pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in shown)
        if str(out) == "-":
            click.echo(pem, nl=False)
        else:
            write_file(out, pem, secret=False, force=force)


def _role(certificate: x509.Certificate) -> str:
    return "root" if certificate.issuer == certificate.subject else "issuing"
