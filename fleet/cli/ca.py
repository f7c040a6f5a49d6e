"""`fleet ca`: the fleet's certificate authorities."""

from pathlib import Path

import click
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.cli.desk import Desk, fleet_option
from fleet.cli.errors import attempting
from fleet.cli.output import output_option, print_rows
from fleet.cli.output_file import write_file


@click.group()
def ca() -> None:
    """The fleet's certificate authorities: the root that devices trust, and the issuing CA that it signs."""


@ca.command()
@fleet_option
@output_option
def show(desk: Desk, output: str) -> None:
    """List the CAs with their validity and fingerprints."""
    with attempting("reading the CAs"):
        found = [(each.role, each.certificate) for each in desk.authorities()]
    rows = [
        (role, c.subject.rfc4514_string(), c.not_valid_after_utc, c.fingerprint(hashes.SHA256())) for role, c in found
    ]
    print_rows(("role", "subject", "not_after", "sha256"), rows, output)


@ca.command()
@fleet_option
@click.option("--chain", "whole", is_flag=True, help="The issuing CA too, after the root.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), default="-")
def export(desk: Desk, whole: bool, force: bool, out: Path) -> None:
    """Write out the root certificate.

    It is what devices trust, as PEM, to OUT (default: standard output).

    No key is ever written. For other forms: fleet cert convert ca.pem ca.der
    """
    with attempting("exporting the CA"):
        shown = desk.authorities()[: None if whole else 1]
        pem = b"".join(each.certificate.public_bytes(Encoding.PEM) for each in shown)
        if str(out) == "-":
            click.echo(pem, nl=False)
        else:
            write_file(out, pem, secret=False, force=force)
