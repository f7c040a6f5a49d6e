"""`fleet crl`: certificate revocation lists."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from fleet.cli.errors import CliError, attempting
from fleet.cli.options import FILE, Checked, client_option, limit_option
from fleet.cli.output import Row, output_option, print_rows, print_value
from fleet.cli.records import NONE
from fleet.client.client import Client, path_of
from fleet.config.durable_files import write_file
from fleet.domain.distribution import CRL_KIND_PATTERN, FULL

COLUMNS = ("ca", "subject", "crl", "number", "this_update", "next_update", "entries")
PATH = "/v1/crls"


def _key_identifier(text: str) -> str:
    digits = text.lower().replace(":", "")
    if not re.search(r"^[0-9a-f]{8,128}\Z", digits):
        raise ValueError(f"{text[:80]!r} is not a CA's subject key identifier in hex, nor 8 digits or more of one.")
    return digits


def _with_subjects(client: Client, crls: Iterable[Row]) -> Iterator[Row]:
    subjects = {each["key_id"]: each["subject"] for each in client.get("/v1/authorities")["items"]}
    for each in crls:
        yield {**each, "subject": subjects.get(each["ca"], "")}


def _named(client: Client, text: str) -> str:
    """The CA whose subject key identifier begins with `text`. Raises: CliError: several do."""
    found = {each["ca"] for each in client.items(PATH) if each["ca"].startswith(text)}
    if len(found) > 1 and text not in found:
        raise CliError(
            "showing a CRL", f"{text} is the beginning of several CAs' key identifiers", "See: fleet ca show"
        )
    return found.pop() if len(found) == 1 else text


def _kind(text: str) -> str:
    if not re.search(CRL_KIND_PATTERN, text):
        raise ValueError(f"{text[:80]!r} is not full, plain, delta, or a shard such as 3-of-128.")
    return text


_CA = Checked("CA", _key_identifier)
_KIND = Checked("KIND", _kind)


@click.group()
def crl() -> None:
    """CRLs: what other parties than the fleet's own listeners check certificates with.

    `fleet serve` signs them as certificates are revoked, and the publish listener serves them.
    """


@crl.command("list")
@client_option
@limit_option
@output_option
def list_(client: Client, limit: int | None, output: str) -> None:
    """List the published CRLs."""
    with attempting("listing the CRLs"):
        print_rows(COLUMNS, _with_subjects(client, client.items(PATH, limit)), output, NONE)


@crl.command()
@client_option
@click.argument("issuer", type=_CA, metavar="CA")
@click.argument("kind", type=_KIND, default=FULL, metavar="[full|plain|delta|N-of-M]")
@click.option("--out", type=FILE, help="Write it there, PEM.")
@click.option("--force", is_flag=True, help="Overwrite the file of --out.")
@output_option
def show(client: Client, issuer: str, kind: str, out: Path | None, force: bool, output: str) -> None:
    """Show a CRL of the CA with the subject key identifier CA, in hex, or its beginning; see: fleet ca show

    full has an issuing distribution point, plain has none, as some clients refuse it; N-of-M is one shard.

    \b
    Example:
      fleet crl show 5d3c0a1f full --out issuing.crl
    """
    with attempting(f"showing the CRL {kind} of {issuer}"):
        found: dict[str, Any] = client.get(path_of(f"{PATH}/{{}}/{{}}", _named(client, issuer), kind))
        pem = found["pem"]
        if out is not None:
            write_file(out, pem.encode("ascii"), secret=False, force=force)
    print_value(found, output, {name: value for name, value in found.items() if name != "pem"})


@crl.command()
@client_option
@click.option("--hours", type=click.IntRange(1), help="From thisUpdate to nextUpdate, in place of the setting's.")
@output_option
def issue(client: Client, hours: int | None, output: str) -> None:
    """Sign every CRL now whose CA's key is at the home.

    A server does so by itself. For a home that is not served, such as one that keeps an offline root.

    \b
    Example:
      fleet crl issue --hours 8760
    """
    with attempting("issuing the CRLs"):
        made = client.post(f"{PATH}/issue", {"hours": hours} if hours is not None else None)["items"]
    print_rows(COLUMNS, made, output)
