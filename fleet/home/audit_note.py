"""The home's note of how the audit that is sealed here began: the registry must still contain those rows.

Without it, a registry whose audit has been emptied looks like one that has just been made. It is over the rows of the
first head that was sealed here; once there are as many as retention archives at once, over those, whose hash is kept.
"""

from typing import Annotated

import msgspec

from fleet.config.durable_files import write_file
from fleet.domain.audit_log import NODE_LEVELS, TreeHead
from fleet.domain.errors import Invalid
from fleet.domain.ports import AuditReader
from fleet.home.layout import Home
from fleet.services.audit_tree import tree_at

NOTE_SIZE_MAX = 4096
ROWS_MAX = 1 << NODE_LEVELS[0]


class AuditNote(msgspec.Struct, frozen=True):
    """Number of rows, and the root of their tree in hex."""

    size: Annotated[int, msgspec.Meta(ge=1, le=ROWS_MAX)]
    root: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


def read_note(home: Home) -> AuditNote | None:
    """None: no head was sealed here. Raises: Invalid (`bad-audit-note`). OSError."""
    try:
        with home.audit_note.open("rb") as file:
            return msgspec.json.decode(file.read(NOTE_SIZE_MAX + 1), type=AuditNote)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(
            "bad-audit-note", f"{home.audit_note} is not the note of an audit.", "Find out who changed it."
        ) from error


async def keep_note(home: Home, reader: AuditReader, head: TreeHead) -> None:
    """Note how the audit under `head` began, or check that it began as noted.

    Raises: Invalid: `audit-removed`, `audit-rewritten`: it did not; `bad-audit-note`. OSError. Unavailable.
    """
    note, size = read_note(home), min(head.size, ROWS_MAX)
    if note is not None:
        advice = f"See: fleet audit verify. If another registry was put in place on purpose, remove {home.audit_note}."
        if head.size < note.size:
            raise Invalid("audit-removed", f"{note.size} rows were sealed here, and now {head.size} are.", advice)
        if (await tree_at(reader, note.size)).root().hex() != note.root:
            raise Invalid("audit-rewritten", f"The first {note.size} rows are not those that were sealed here.", advice)
        if size < ROWS_MAX or note.size == ROWS_MAX:
            return
    root = (await tree_at(reader, size)).root()
    text = msgspec.json.encode(AuditNote(size, root.hex())) + b"\n"
    write_file(home.audit_note, text, secret=False, force=True)
