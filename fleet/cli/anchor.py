"""`fleet anchor`: makers' CAs, whose certificates (IDevID, IEEE 802.1AR) may earn a first one of this fleet."""

from pathlib import Path

import click
from cryptography import x509

from fleet.cli.desk import Desk, fleet_option
from fleet.cli.errors import attempting
from fleet.cli.output import output_option, print_rows, print_value
from fleet.domain.idevid import Anchor

COLUMNS = ("name", "models", "subject", "not_after", "sha256", "created_at")


@click.group()
def anchor() -> None:
    """Makers' CAs: whom to believe that a device is what it says."""


@anchor.command()
@fleet_option
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--model", "models", multiple=True, required=True, help="A model of its devices; may be repeated.")
@output_option
def add(desk: Desk, name: str, file: Path, models: tuple[str, ...], output: str) -> None:
    """Believe the CA of a maker, under the name NAME. FILE holds it, root or intermediate: one certificate, PEM or DER.

    Its devices show their maker's certificate (IDevID, IEEE 802.1AR) in the TLS handshake of EST's simpleenroll, and
    nowhere else. The model must let them in (fleet model set MODEL --admit idevid), and the manifest must list the
    serial (fleet device import FILE), unless the model takes any of this CA (--any-idevid). Running servers follow at
    once.

    A maker can name any serial of its models: give makers that do not vouch for one another models of their own.

    \b
    Example:
      fleet anchor add acme acme-root.pem --model pump
    """

    with attempting(f"adding anchor '{name}'"):
        added = desk.add_anchor(name, models, file.read_bytes())
    print_value(_shown(added), output)


@anchor.command(name="list")
@fleet_option
@output_option
def list_(desk: Desk, output: str) -> None:
    """List the makers' CAs that are believed."""
    with attempting("listing the anchors"):
        found = desk.anchors()
    print_rows(COLUMNS, [tuple(_shown(each).values()) for each in found], output)


@anchor.command()
@fleet_option
@click.argument("name")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the audit.")
@output_option
def remove(desk: Desk, name: str, reason: str, output: str) -> None:
    """Believe the CA NAME no more. Devices that have enrolled by it stay."""
    with attempting(f"removing anchor '{name}'"):
        desk.remove_anchor(name, reason)
    print_value({"name": name, "state": "removed"}, output)


def _shown(each: Anchor) -> dict[str, object]:
    certificate = x509.load_der_x509_certificate(each.der)
    return {
        "name": each.name,
        "models": each.models,
        "subject": certificate.subject.rfc4514_string(),
        "not_after": certificate.not_valid_after_utc,
        "sha256": each.fingerprint,
        "created_at": each.created_at,
    }
