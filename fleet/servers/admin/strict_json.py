"""JSON bodies of requests: read strictly, and refused by a code."""

from typing import Any

from fleet.servers.refusals import HttpRefused
from fleet.wire.errors import WireError
from fleet.wire.strict_json import finite, loads


def decode(body: bytes) -> Any:
    """The one value that `body` spells. Raises: HttpRefused: 400 `bad-json`. The body is never quoted."""
    try:
        return loads(body, _integer_or_float)
    except WireError as error:
        raise HttpRefused(400, "bad-json", str(error)) from None


def _integer_or_float(text: str) -> float:
    number = finite(text)
    return int(number) if number.is_integer() else number  # JSON Schema, 6.1.1: 1.0 is an integer
