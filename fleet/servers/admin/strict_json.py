"""JSON bodies (RFC 8259), read so that there is one way to understand them.

No member twice, no NaN or Infinity, no number that overflows, no lone surrogate, no nesting deeper than DEPTH_MAX.
"""

import json
import math
import re
from typing import Any

from fleet.servers.refusals import HttpRefused

DEPTH_MAX = 16  # our deepest body has three levels

# A string that never ends is one token, too: were its end asked for, each quote in it would be tried as a beginning.
_NESTING = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)


def decode(body: bytes) -> Any:
    """The one value that `body` spells. Raises: HttpRefused: 400 `bad-json`. The body is never quoted."""
    try:
        text = body.decode("utf-8")
        _check_depth(text)
        value = json.loads(text, object_pairs_hook=_members, parse_constant=_no_constant, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate cannot be written again
    except _Complaint as complaint:
        raise _bad(str(complaint)) from None
    except (
        ValueError
    ):  # JSONDecodeError and Unicode errors are ValueErrors, and so is an integer of thousands of digits
        raise _bad("The body is not JSON in UTF-8.") from None
    return value


class _Complaint(Exception):
    pass


def _bad(message: str) -> HttpRefused:
    return HttpRefused(400, "bad-json", message)


def _check_depth(text: str) -> None:
    depth = 0
    for token in _NESTING.finditer(text):
        first = token[0][0]
        depth += (first in "[{") - (first in "]}")
        if depth > DEPTH_MAX:
            raise _Complaint(f"The body is nested deeper than {DEPTH_MAX} levels.")


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Complaint("An object in the body has a member twice.")
    return members


def _no_constant(name: str) -> None:
    raise _Complaint("NaN and Infinity are no JSON.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Complaint("A number in the body is too large.")
    return int(number) if number.is_integer() else number  # JSON Schema, 6.1.1: 1.0 is an integer
