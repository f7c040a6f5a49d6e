"""`fleet anchor`: manufacturers' CAs, trusted for a first enrollment with an IDevID (IEEE 802.1AR)."""

import ssl
from pathlib import Path

import click

from fleet.cli.errors import attempting
from fleet.cli.options import client_option, limit_option, reason_option
from fleet.cli.output import Row, output_option, print_rows, print_value
from fleet.cli.parameters import ANCHOR, MODEL
from fleet.cli.several import print_each
from fleet.client.client import Client, path_of
from fleet.domain.errors import Invalid

COLUMNS = ("name", "models", "subject", "not_after", "sha256", "created_at")
FILE_SIZE_MAX = 64 * 1024


@click.group()
def anchor() -> None:
    """Manufacturers' CAs: trust anchors for the certificates that devices come with."""


@anchor.command()
@client_option
@click.argument("name", type=ANCHOR)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--model", "models", type=MODEL, multiple=True, required=True, help="A model it is for; may be repeated.")
@output_option
def add(client: Client, name: str, file: Path, models: tuple[str, ...], output: str) -> None:
    """Trust a manufacturer's CA under the name NAME. FILE holds it, root or intermediate: one certificate, PEM or DER.

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
        text = data.decode("ascii", "replace") if b"-----BEGIN" in data else ssl.DER_cert_to_PEM_cert(data)
        added = client.post("/v1/anchors", {"name": name, "models": list(models), "certificate": text})
    print_value(added, output, _in_short(added))


@anchor.command(name="list")
@client_option
@limit_option
@output_option
def list_(client: Client, limit: int | None, output: str) -> None:
    """List the manufacturers' CAs."""
    with attempting("listing the anchors"):
        print_rows(COLUMNS, client.items("/v1/anchors", limit), output)


@anchor.command()
@client_option
@click.argument("names", type=ANCHOR, nargs=-1, required=True, metavar="NAME...")
@reason_option
@output_option
def remove(client: Client, names: tuple[str, ...], reason: str, output: str) -> None:
    """Stop trusting manufacturers' CAs. Devices that enrolled with them stay."""

    def removed(name: str) -> Row:
        client.post(path_of("/v1/anchors/{}/remove", name), {"reason": reason})
        return {"name": name, "state": "removed"}

    print_each(names, "removing anchor '{}'", removed, output)


def _in_short(anchor: Row) -> Row:
    return {key: anchor[key] for key in COLUMNS}
