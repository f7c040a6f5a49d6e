"""`fleet anchor`: manufacturers' CAs, trusted for a first enrollment with an IDevID (IEEE 802.1AR)."""

from pathlib import Path

import click

from fleet.cli.errors import attempting
from fleet.cli.options import FILE, client_option
from fleet.cli.output import output_option, print_value
from fleet.cli.parameters import ANCHOR, MODEL
from fleet.cli.records import Records
from fleet.client.client import Client
from fleet.domain.errors import Invalid
from fleet.wire.ca_file import ca_pem
from fleet.wire.errors import WireError

COLUMNS = ("name", "models", "subject", "not_after", "sha256", "created_at")
FILE_SIZE_MAX = 64 * 1024


@click.group()
def anchor() -> None:
    """Manufacturers' CAs: trust anchors for the certificates that devices come with."""


ANCHORS = Records(anchor, ANCHOR, COLUMNS)
ANCHORS.list("List the manufacturers' CAs.")
ANCHORS.act("remove", "Stop trusting manufacturers' CAs. Devices that enrolled with them stay.", {"state": "removed"})


@anchor.command()
@client_option
@click.argument("name", type=ANCHOR)
@click.argument("file", type=FILE)
@click.option("--model", "models", type=MODEL, multiple=True, required=True, help="A model it is for; may be repeated.")
@output_option
def add(client: Client, name: str, file: Path, models: tuple[str, ...], output: str) -> None:
    """Trust a manufacturer's CA under the name NAME. FILE holds it, root or intermediate: one certificate, PEM, DER or
    PKCS#7.

    Its devices present their IDevID certificate (IEEE 802.1AR) in the TLS handshake of EST's simpleenroll,
    and nowhere else. The model must admit them (fleet model set MODEL --admit idevid), and the manifest must list the
    serial (fleet device import FILE), unless the model accepts any of this CA (--any-idevid). Running servers follow
    at once.

    A manufacturer can issue for any serial of its models: give manufacturers that do not trust each other separate
    models.

    \b
    Example:
      fleet anchor add acme acme-root.pem --model pump
    """
    with attempting(f"adding anchor '{name}'"):
        with file.open("rb") as opened:
            data = opened.read(FILE_SIZE_MAX + 1)
        if len(data) > FILE_SIZE_MAX:
            raise Invalid("bad-certificate", f"{file} is larger than {FILE_SIZE_MAX} bytes.", "Check the path.")
        added = client.post("/v1/anchors", {"name": name, "models": list(models), "certificate": _text(data)})
    print_value(added, output, {key: added[key] for key in COLUMNS})


def _text(data: bytes) -> str:
    try:
        return ca_pem(data)
    except WireError as error:
        raise Invalid("bad-anchor", str(error)) from error
