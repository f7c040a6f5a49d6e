"""The home's note of the newest audit head that was sealed here: the registry must still contain it.

Without it, a registry whose audit has been emptied looks like one that has just been made.
"""

from typing import Annotated

import msgspec

from fleet.config.durable_files import write_file
from fleet.domain.audit_log import TreeHead
from fleet.domain.errors import Invalid
from fleet.domain.ports import AuditReader
from fleet.home.layout import Home
from fleet.services.audit_tree import tree_at

SIZE_MAX = 4096


class HeadNote(msgspec.Struct, frozen=True):
    """Number of rows, and the root of their tree in hex."""

    size: Annotated[int, msgspec.Meta(ge=1, lt=1 << 62)]
    root: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


def read_head_note(home: Home) -> HeadNote | None:
    """None: no head was sealed here. Raises: Invalid (`bad-head-note`). OSError."""
    try:
        with home.audit_head.open("rb") as file:
            return msgspec.json.decode(file.read(SIZE_MAX + 1), type=HeadNote)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(
            "bad-head-note", f"{home.audit_head} is not the note of an audit head.", "Find out who changed it."
        ) from error


async def note_head(home: Home, reader: AuditReader, head: TreeHead) -> None:
    """Note `head`, if it continues the one that is noted.

    Raises: Invalid: `audit-removed`, `audit-rewritten`: it does not; `bad-head-note`. OSError. Unavailable.
    """
    note = read_head_note(home)
    advice = f"See: fleet audit verify. If the registry was put back on purpose, remove {home.audit_head}."
    if note is not None and head.size < note.size:
        raise Invalid("audit-removed", f"A head of {note.size} rows was sealed here, and rows are missing.", advice)
    if note is not None and (await tree_at(reader, note.size)).root().hex() != note.root:
        raise Invalid("audit-rewritten", f"The first {note.size} rows are not those that were sealed here.", advice)
    text = msgspec.json.encode(HeadNote(head.size, head.root.hex())) + b"\n"
    write_file(home.audit_head, text, secret=False, force=True)
