"""`fleet audit prove` and `check-proof`: that one row is in the audit, shown to somebody who has no registry."""

import json
import re
from pathlib import Path

import click

from fleet.ca.head_signer import HEAD_KEY_SIZE_MAX, HeadKey, check_head, read_head_key
from fleet.cli.errors import attempting
from fleet.cli.options import FILE, client_option
from fleet.cli.output import output_option, print_value
from fleet.client.client import Client
from fleet.config.durable_files import write_file
from fleet.domain.audit_log import TreeHead
from fleet.domain.audit_proof import PROOF_SIZE_MAX, check_path, proof_text, read_proof
from fleet.domain.changes import AuditEntry

ENTRY = ("at", "actor", "action", "subject", "outcome", "address", "detail")

_SEQ = re.compile(r"[0-9]{1,18}")
_SERIAL = re.compile(r"(0x)?[0-9a-fA-F:]{1,59}")


@click.command(name="prove")
@client_option
@click.argument("what", metavar="SEQ|SERIAL")
@click.option("--out", type=FILE, metavar="FILE", help="A new file for it.")
@output_option
def prove_(client: Client, what: str, out: Path | None, output: str) -> None:
    """Prove that a row is in the audit.

    It is row SEQ, or the row that recorded the issue of the certificate SERIAL. The proof is a JSON text, printed or
    written into a file: the row, its path through the tree, and the signed head. `fleet audit check-proof` checks it
    with nothing but ca/audit.pub. Up to 18 decimal digits are a SEQ; write 0x in front of a serial number that short.

    \b
    Examples:
      fleet audit prove 17 --out row-17.json
      fleet audit prove 5d1f4c0a9be2… --out issue.json
    """
    is_row = _SEQ.fullmatch(what)
    if not is_row and not _SERIAL.fullmatch(what):
        raise click.UsageError("Give a row's number, or a certificate's serial number in hex.")

    with attempting(f"proving {'row' if is_row else 'the issue of'} {what}"):
        query = (
            {"seq": what} if is_row else {"serial": what.removeprefix("0x").replace(":", "").lower().lstrip("0") or "0"}
        )
        proof = read_proof(json.dumps(client.get("/v1/audit/proof", **query)).encode("ascii"))
        check_path(proof)
        text = proof_text(proof)
        if out is not None:
            write_file(out, text.encode("ascii"), secret=True)
    if out is None:
        click.echo(text, nl=False)
        return
    print_value({"file": str(out), "seq": proof.seq, "head": head_text(proof.head)}, output)


@click.command(name="check-proof")
@click.argument("file", type=FILE)
@click.option(
    "--public-key",
    "key_file",
    type=FILE,
    required=True,
    metavar="PUB",
    help="The public key that signs the audit's heads: a copy of the home's ca/audit.pub.",
)
@output_option
def check_proof(file: Path, key_file: Path, output: str) -> None:
    """Check a proof, offline.

    Needs only FILE, made by `fleet audit prove`, and the public key.

    Exit code 0: the row was in the audit when the head was signed. 1: the proof is not valid, or not a proof.

    \b
    Example:
      fleet audit check-proof row-17.json --public-key audit.pub
    """
    key = head_key_in(key_file)
    with attempting(f"checking the proof '{file}'"):
        with file.open("rb") as opened_file:
            proof = read_proof(opened_file.read(PROOF_SIZE_MAX + 1))
        check_path(proof)
        check_head(proof.head, (key,))
    head = {"head": head_text(proof.head), "sealed_at": proof.head.at}
    print_value({"ok": True, "seq": proof.seq, **entry_shown(proof.entry), **head}, output)


def head_key_in(file: Path) -> HeadKey:
    """The public key in `file`, PEM."""
    with attempting(f"reading the public key '{file}'"), file.open("rb") as opened_file:
        return read_head_key(opened_file.read(HEAD_KEY_SIZE_MAX))


def entry_shown(entry: AuditEntry) -> dict[str, object]:
    """A row of the audit as commands print it."""
    return {key: getattr(entry, key) for key in ENTRY}


def head_text(head: TreeHead) -> str:
    """SIZE:ROOT."""
    return f"{head.size}:{head.root.hex()}"
