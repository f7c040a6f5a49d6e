"""JSON bodies of requests: read strictly, and refused by a code."""

from typing import Any

from fleet.servers.refusals import HttpRefused
from fleet.wire.strict_json import Ambiguous, finite, loads


def decode(body: bytes) -> Any:
    """The one value that `body` spells. Raises: HttpRefused: 400 `bad-json`. The body is never quoted."""
    try:
        return loads(body, _integer_or_float)
    except Ambiguous as error:
        raise _bad(str(error)) from None
    except (
        ValueError
    ):  # JSONDecodeError and Unicode errors are ValueErrors, and so is an integer of thousands of digits
        raise _bad("The body is not JSON in UTF-8.") from None


def _bad(message: str) -> HttpRefused:
    return HttpRefused(400, "bad-json", message)


def _integer_or_float(text: str) -> float:
    number = finite(text)
    return int(number) if number.is_integer() else number  # JSON Schema, 6.1.1: 1.0 is an integer
