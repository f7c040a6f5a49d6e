"""Fields of an HTML form, `application/x-www-form-urlencoded`: each once, UTF-8, and none left out."""

import re
from urllib.parse import unquote_to_bytes

from fleet.wire.errors import Malformed, TooLarge

FIELDS_MAX = 32

_FIELD = re.compile(rb"((?:[!-$'-<>-~]|%[0-9A-Fa-f]{2})+)=((?:[!-$'-<>-~]|%[0-9A-Fa-f]{2})*)")
"""Printable ASCII without space, & and =; % only before two digits."""


def loads(body: bytes) -> dict[str, str]:
    """The fields in `body`, by name. Raises: Malformed, TooLarge; what the body holds is not quoted."""
    if body.count(b"&") >= FIELDS_MAX:
        raise TooLarge(f"The form has more than {FIELDS_MAX} fields.")
    fields: dict[str, str] = {}
    for part in body.split(b"&"):
        found = _FIELD.fullmatch(part)
        if found is None:
            raise Malformed("The body is not a form: fields NAME=VALUE, percent-encoded.")
        name, value = (_text(piece) for piece in found.groups())
        if name in fields:
            raise Malformed("The form has a field twice.")
        fields[name] = value
    return fields


def _text(piece: bytes) -> str:
    try:
        return unquote_to_bytes(piece.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        raise Malformed("The form is not UTF-8.") from None
