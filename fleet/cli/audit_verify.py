"""`fleet audit verify`: every row, every signed head, and what is kept beside them."""

import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import click

from fleet.ca.head_signer import HeadKey
from fleet.cli.desk import Desk, fleet_or_copy_option
from fleet.cli.errors import attempting
from fleet.cli.head_keys import head_key_in
from fleet.cli.home import run
from fleet.cli.output import output_option, print_value
from fleet.cli.output_file import write_file
from fleet.domain.errors import Invalid
from fleet.domain.ports import AuditReader
from fleet.services.audit_verification import Noted, Verified, verify
from fleet.storage.sqlite.audit_reader import audit_of_copy

STATE_SIZE_MAX = 4_096
STATE_VERSION = 1
HEAD_FORM = "SIZE:ROOT"

_HEAD = re.compile(r"([0-9]{1,18}):([0-9a-fA-F]{64})")


class Head(click.ParamType[Noted]):
    """A number of rows and the root of their tree, as `fleet audit verify` prints them."""

    name = HEAD_FORM

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Noted:
        if isinstance(value, Noted):
            return value
        found = _HEAD.fullmatch(str(value).strip())
        if not found:
            self.fail("It is the number of rows, a colon and the root, as `fleet audit verify` prints it.", param, ctx)
        return Noted(int(found[1]), bytes.fromhex(found[2]))


@click.command(name="verify")
@fleet_or_copy_option
@click.option("--file", "copy", type=click.Path(path_type=Path), metavar="DB", help="Verify this copy of a registry.")
@click.option(
    "--public-key",
    "key_files",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    metavar="PUB",
    help="A public key that heads may be signed by: a copy of ca/audit.pub. May be repeated. "
    "With --home, its own is taken too; from afar it is yours to bring: who holds the rows must not vouch for the key.",
)
@click.option("--head", type=Head(), help="A head noted earlier, which must still hold.")
@click.option("--since-head", type=Head(), help="Read only what came after this head, noted when it was verified.")
@click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Remember in FILE the last head that was verified, and read only what came after it.",
)
@click.option("--whole", is_flag=True, help="With --state: read everything, and hold it against FILE as well.")
@output_option
def verify_(
    desk: Desk | None,
    copy: Path | None,
    key_files: tuple[Path, ...],
    head: Noted | None,
    since_head: Noted | None,
    state: Path | None,
    whole: bool,
    output: str,
) -> None:
    """Verify the audit.

    Looks at every row, every signed head, and what is kept beside them. What does not fit is named, and the exit code
    is 1: a row that was changed, removed, inserted or moved; rows that are not what a head was signed over; a head that
    was removed, or signed by another key.

    Rows that no head covers yet, and the newest heads, can be cut off unseen, unless a head was noted somewhere else:
    give it with --head, or keep a --state file on another machine.

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
    with attempting(f"verifying the audit of '{copy}'" if copy is not None else "verifying the audit"):
        remembered = _read_state(state) if state is not None else None
        since, noted = (None, remembered) if whole else (since_head or remembered, head)
        given = [head_key_in(file) for file in key_files]
        own = desk.audit_keys() if desk is not None else None
        keys = [*(own or ()), *given] if given or own is not None else None
        verified = run(_verify(_reader(desk, copy), keys, since, noted))
        if state is not None and verified.head is not None:
            write_file(state, _state_of(verified.noted), secret=False, force=True)
    print_value(_shown(verified, signed=keys is not None), output)


@asynccontextmanager
async def _reader(desk: Desk | None, copy: Path | None) -> AsyncIterator[AuditReader]:
    if desk is not None:
        async with desk.audit_reader() as reader:
            yield reader
    elif copy is not None:
        with audit_of_copy(copy) as kept:
            yield kept


async def _verify(
    opening: AbstractAsyncContextManager[AuditReader],
    keys: Sequence[HeadKey] | None,
    since: Noted | None,
    noted: Noted | None,
) -> Verified:
    async with opening as reader:
        return await verify(reader, keys, since=since, noted=noted)


def _shown(v: Verified, *, signed: bool) -> dict[str, object]:
    return {
        "ok": True,
        "rows": v.rows,
        "head": f"{v.rows}:{v.root.hex()}",
        "sealed": v.sealed,
        "unsealed": v.rows - v.sealed,
        "sealed_head": f"{v.sealed}:{v.head.root.hex()}" if v.head is not None else None,
        "sealed_at": v.head.at if v.head is not None else None,
        "read_from": v.first_row,
        "heads_checked": v.heads,
        "signatures": "verified" if signed else "not verified: give --public-key",
        "archived": v.archived or None,
    }


def _state_of(noted: Noted) -> bytes:
    value = {
        "version": STATE_VERSION,
        "size": noted.size,
        "root": noted.root.hex(),
        "heads": noted.heads,
        "heads_digest": noted.heads_digest.hex(),
    }
    return json.dumps(value).encode("ascii") + b"\n"


def _read_state(file: Path) -> Noted | None:
    """What FILE remembers; None when it is not there yet.

    Raises: Invalid (`bad-state`).
    """
    try:
        with file.open("rb") as opened_file:
            text = opened_file.read(STATE_SIZE_MAX + 1)
    except FileNotFoundError:
        return None
    try:
        value = json.loads(text)
        if value["version"] != STATE_VERSION:
            raise ValueError("another version")
        root, digest = bytes.fromhex(value["root"]), bytes.fromhex(value["heads_digest"])
        noted = Noted(_count(value["size"]), root, _count(value["heads"]), digest)
        if len(root) != 32 or len(digest) != 32 or noted.size == 0:
            raise ValueError("no head")
    except (ValueError, TypeError, KeyError, RecursionError):
        advice = "Put the right file back. To start over from the first row, move it away."
        raise Invalid("bad-state", f"{file} is no state that this command has written.", advice) from None
    return noted


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise ValueError("no count")
    return value
