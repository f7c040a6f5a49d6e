"""PEM text into its blocks (RFC 7468), with whatever people write around them passed over."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from fleet.wire import armor
from fleet.wire.encodings.bundle import OBJECTS_MAX
from fleet.wire.errors import Malformed, TooLarge

_BEGIN = re.compile(rb"-----BEGIN ([!-,.-~ ](?:[ -~]{0,62}[!-,.-~])?)-----")
_GLUED = re.compile(rb"-----(?=-----BEGIN )")
"""Files joined where the first has no line end."""
_HEADER = re.compile(rb"[A-Za-z][A-Za-z0-9-]*:")


@dataclass(frozen=True, slots=True)
class Block:
    """One block. `line` is where it begins, counted from 1."""

    label: str
    line: int
    content: bytes = field(repr=False)
    """The DER, or what the old encryption made of it."""
    text: bytes = field(repr=False)
    """The whole block again, from BEGIN to END, with plain line ends."""
    old_encryption: bool = False
    """Encrypted by the headers of RFC 1421, as OpenSSL once wrote keys."""


def blocks(data: bytes) -> Iterator[Block]:
    """Yield each block of `data`. White space around a line and any sort of line end are taken.

    Raises: Malformed naming the line, TooLarge for more than OBJECTS_MAX blocks.
    """
    lines = _GLUED.sub(b"-----\n", data).splitlines()
    count, position = 0, 0
    while position < len(lines):
        begin = _BEGIN.fullmatch(lines[position].strip())
        if begin is None:
            position += 1
            continue
        count += 1
        if count > OBJECTS_MAX:
            raise TooLarge(f"The file holds more than {OBJECTS_MAX} PEM blocks.")
        end = _end_of(lines, position, begin[1])
        yield _block(begin[1], position + 1, [line.strip() for line in lines[position + 1 : end]])
        position = end + 1
    if not count:
        raise Malformed("The file holds no whole PEM heading.")


def _end_of(lines: list[bytes], begin: int, label: bytes) -> int:
    """Index of the END line that belongs to the BEGIN at index `begin`."""
    for index in range(begin + 1, len(lines)):
        line = lines[index].strip()
        if line.startswith(b"-----"):
            if line == b"-----END " + label + b"-----":
                return index
            break
    raise Malformed(f"The {label.decode('ascii')} block that begins on line {begin + 1} has no end of its own.")


def _block(label: bytes, line: int, body: list[bytes]) -> Block:
    name = label.decode("ascii")
    headers = 0
    if body and _HEADER.match(body[0]):
        # RFC 1421, 4.4: headers last until an empty line.
        headers = body.index(b"") + 1 if b"" in body else len(body)
    content = armor.unwrap(b"".join(body[headers:]))
    if not content:
        raise Malformed(f"The {name} block that begins on line {line} is not base64.")
    text = b"\n".join((b"-----BEGIN " + label + b"-----", *body, b"-----END " + label + b"-----", b""))
    old_encryption = any(each.startswith(b"Proc-Type:") and b"ENCRYPTED" in each for each in body[:headers])
    return Block(name, line, content, text, old_encryption)
