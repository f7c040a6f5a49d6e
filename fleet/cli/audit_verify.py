"""`fleet audit verify`, `prove` and `check-proof`: that nothing of the audit was edited; that a row is in it, also for
somebody who has no registry.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import msgspec
from click.core import ParameterSource

from fleet.ca.head_signer import HEAD_KEY_SIZE_MAX, HeadKey, check_head, read_head_key
from fleet.cli.errors import attempting
from fleet.cli.options import FILE, REMOTE, Checked, client_at, client_option, location_options, reading_answers
from fleet.cli.output import output_option, print_value
from fleet.client.audit import audit_reader
from fleet.client.client import Client
from fleet.config.durable_files import write_file
from fleet.domain.audit_log import TreeHead
from fleet.domain.audit_proof import PROOF_SIZE_MAX, check_path, proof_text, read_proof
from fleet.domain.changes import AuditEntry
from fleet.domain.errors import Invalid
from fleet.domain.ports import AuditReader
from fleet.services.audit_verification import Noted, Verified, verify
from fleet.storage.sqlite.audit_reader import audit_of_copy

STATE_SIZE_MAX = 4_096

_HEAD = re.compile(r"([0-9]{1,18}):([0-9a-fA-F]{64})")


def _noted(text: str) -> Noted:
    found = _HEAD.fullmatch(text.strip())
    if not found:
        raise ValueError("It is the number of rows, a colon and the root, as `fleet audit verify` prints it.")
    return Noted(int(found[1]), bytes.fromhex(found[2]))


HEAD = Checked("SIZE:ROOT", _noted)
"""A number of rows and the root of their tree, as `fleet audit verify` prints them."""


@click.command(name="verify")
@location_options
@click.option("--file", "copy", type=click.Path(path_type=Path), metavar="DB", help="Verify this copy of a registry.")
@click.option(
    "--public-key",
    "key_files",
    type=FILE,
    multiple=True,
    metavar="PUB",
    help="A public key that heads may be signed by: a copy of ca/audit.pub. May be repeated. "
    "With --home, its own is used too; with --url, pass your own copy: the server must not vouch for itself.",
)
@click.option("--head", type=HEAD, help="A head noted earlier, which the audit must still contain.")
@click.option("--since-head", type=HEAD, help="Read only what came after this head, noted when it was verified.")
@click.option(
    "--state",
    type=FILE,
    metavar="FILE",
    help="Remember in FILE the last head that was verified, and read only what came after it.",
)
@click.option("--whole", is_flag=True, help="With --state: read everything, and check it against FILE as well.")
@output_option
def verify_(
    copy: Path | None,
    key_files: tuple[Path, ...],
    head: Noted | None,
    since_head: Noted | None,
    state: Path | None,
    whole: bool,
    output: str,
    **location: Any,
) -> None:
    """Verify the audit.

    Checks every row, every signed head, and the hashes stored beside them. A mismatch is named, and the exit code is
    1: a row that was changed, removed, inserted or moved; rows that differ from those a head was signed over; a head
    that was removed, or signed by another key.

    Truncation of rows that no head covers yet, and of the newest heads, is detected only against a head that was noted
    elsewhere: pass it with --head, or keep a --state file on another machine.

    \b
    Examples:
      fleet audit verify --state /var/lib/auditor/fleet.json
      fleet audit verify --file backup.db --public-key audit.pub
      fleet audit verify --url https://fleet.example:8444 --cert bob.pem --public-key audit.pub --state bob.json
    """
    if since_head is not None and state is not None:
        raise click.UsageError("Give one of --since-head and --state.")
    if whole and (state is None or head is not None):
        raise click.UsageError("--whole needs --state, and no --head.")
    client = client_at(**location) if copy is None else None
    if copy is not None:
        context = click.get_current_context()
        for name in REMOTE:
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{name} is for a served fleet, and --file is read here.")
    attempted = f"verifying the audit of '{copy}'" if copy is not None else "verifying the audit"
    with attempting(attempted), client or nullcontext(), reading_answers(client) if client else nullcontext():
        remembered = _read_state(state) if state is not None else None
        since, noted = (None, remembered) if whole else (since_head or remembered, head)
        given = [head_key_in(file) for file in key_files]
        own, sealed_here = _known_at_home(client)
        keys = [*(own or ()), *given] if given or own is not None else None

        async def work() -> Verified:
            async with _reader(client, copy) as reader:
                return await verify(reader, keys, since=since, noted=noted, sealed_here=sealed_here)

        verified = asyncio.run(work())
        if not verified.rows:
            raise Invalid("audit-removed", "The audit is broken: it has no rows, and every registry begins with one.")
        if state is not None and verified.head is not None:
            write_file(state, _state_of(verified.noted), secret=False, force=True)
    print_value(_shown(verified, signed=keys is not None), output)


def _known_at_home(client: Client | None) -> tuple[list[HeadKey] | None, Noted | None]:
    """Keys of the home itself, that heads may be signed by, and its note of how the audit that is sealed there began.

    None of both elsewhere, where none can be trusted without being brought: who holds the rows must not vouch for the
    key.
    """
    if client is None or client.home is None:
        return None, None
    from fleet.home.audit_note import read_note
    from fleet.home.layout import open_home

    home = open_home(client.home)
    keys = [head_key_in(home.audit_public_key)] if home.audit_public_key.exists() else []
    note = read_note(home)
    return keys, Noted(note.size, bytes.fromhex(note.root)) if note is not None else None


@asynccontextmanager
async def _reader(client: Client | None, copy: Path | None) -> AsyncIterator[AuditReader]:
    if client is not None:
        async with audit_reader(client) as reader:
            yield reader
    elif copy is not None:
        with audit_of_copy(copy) as kept:
            yield kept


def _shown(v: Verified, *, signed: bool) -> dict[str, object]:
    return {
        "ok": True,
        "rows": v.rows,
        "head": f"{v.rows}:{v.root.hex()}",
        "sealed": v.sealed,
        "unsealed": v.rows - v.sealed,
        "sealed_head": head_text(v.head) if v.head is not None else None,
        "sealed_at": v.head.at if v.head is not None else None,
        "read_from": v.first_row,
        "heads_checked": v.heads,
        "signatures": "verified" if signed else "not verified: give --public-key",
        "archived": v.archived or None,
    }


class _State(msgspec.Struct):
    """What a --state file remembers of the last head that was verified."""

    version: Literal[1]
    size: Annotated[int, msgspec.Meta(ge=1, lt=1 << 62)]
    root: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-fA-F]{64}\Z")]
    heads: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
    heads_digest: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-fA-F]{64}\Z")]


def _state_of(noted: Noted) -> bytes:
    state = _State(1, noted.size, noted.root.hex(), noted.heads or 0, noted.heads_digest.hex())
    return msgspec.json.encode(state) + b"\n"


def _read_state(file: Path) -> Noted | None:
    """What FILE remembers; None when it is not there yet. Raises: Invalid (`bad-state`)."""
    try:
        with file.open("rb") as opened_file:
            state = msgspec.json.decode(opened_file.read(STATE_SIZE_MAX + 1), type=_State)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        advice = "Put the right file back. To start over from the first row, move it away."
        raise Invalid("bad-state", f"{file} is not a state file of this command.", advice) from None
    return Noted(state.size, bytes.fromhex(state.root), state.heads, bytes.fromhex(state.heads_digest))


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
