"""`fleet anchor`: makers' CAs, whose certificates (IDevID, IEEE 802.1AR) may earn a first one of this fleet."""

from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.authorities import operators_authority
from fleet.ca.maker import read_maker_ca
from fleet.cli.at_home import at_home_only
from fleet.cli.errors import attempting
from fleet.cli.home import OPERATOR, home_option, opened, run, utc_now
from fleet.cli.output import output_option, print_rows, print_value
from fleet.domain.access import Act
from fleet.domain.idevid import Anchor
from fleet.home import open_home
from fleet.live_authorities import client_anchors
from fleet.services import anchors
from fleet.services.revocation import checked_reason
from fleet.tenants import read_authorities

_WHY = "whom the EST door believes is the home's to say"

COLUMNS = ("name", "models", "subject", "not_after", "sha256", "created_at")


@click.group()
def anchor() -> None:
    """Makers' CAs: whom to believe that a device is what it says."""


@anchor.command()
@at_home_only(_WHY)
@home_option
@click.argument("name")
@click.option(
    "--cert",
    "file",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The maker's CA, root or intermediate: one certificate, PEM or DER.",
)
@click.option("--model", "models", multiple=True, required=True, help="A model of its devices; may be repeated.")
@output_option
def add(home: Path, name: str, file: Path, models: tuple[str, ...], output: str) -> None:
    """Believe the CA of a maker, under the name NAME.

    Its devices show their maker's certificate (IDevID, IEEE 802.1AR) in the TLS handshake of EST's simpleenroll, and
    nowhere else. The model must let them in (fleet model set MODEL --admit idevid), and the manifest must list the
    serial (fleet device import FILE), unless the model takes any of this CA (--any-idevid). Running servers follow at
    once.

    A maker can name any serial of its models: give makers that do not vouch for one another models of their own.

    \b
    Example:
      fleet anchor add acme --cert acme-root.pem --model pump
    """

    async def work(der: bytes) -> Anchor:
        async with opened(home) as fleet:
            return await anchors.add_anchor(fleet.registry, name, models, der, act=Act(OPERATOR, utc_now()))

    with attempting(f"adding anchor '{name}'"):
        fleet_home, now = open_home(home), utc_now()
        authorities = read_authorities(fleet_home)
        roots = (each.root for each in authorities.all)
        own = (*client_anchors(authorities)[0], *roots, operators_authority(fleet_home, now))
        found = read_maker_ca(file.read_bytes(), own, now)
        added = run(work(found.public_bytes(Encoding.DER)))
    print_value(_shown(added), output)


@anchor.command(name="list")
@at_home_only(_WHY)
@home_option
@output_option
def list_(home: Path, output: str) -> None:
    """List the makers' CAs that are believed."""

    async def work() -> list[Anchor]:
        async with opened(home) as fleet:
            return await fleet.registry.anchors()

    with attempting("listing the anchors"):
        found = run(work())
    print_rows(COLUMNS, [tuple(_shown(each).values()) for each in found], output)


@anchor.command()
@at_home_only(_WHY)
@home_option
@click.argument("name")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the audit.")
@output_option
def remove(home: Path, name: str, reason: str, output: str) -> None:
    """Believe the CA NAME no more. Devices that have enrolled by it stay."""

    async def work() -> None:
        async with opened(home) as fleet:
            act = Act(OPERATOR, utc_now())
            await anchors.remove_anchor(fleet.registry, name, act=act, reason=checked_reason(reason))

    with attempting(f"removing anchor '{name}'"):
        run(work())
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
