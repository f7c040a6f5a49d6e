"""JSON (RFC 8259), read so that there is one way to understand it.

No member twice, no NaN or Infinity, no number that overflows, no lone surrogate, no nesting deeper than DEPTH_MAX.
"""

import json
import math
from collections.abc import Callable
from typing import Any

from fleet.wire.errors import Malformed

DEPTH_MAX = 16  # our deepest body has three levels

_TOO_DEEP = f"The body is nested deeper than {DEPTH_MAX} levels."


def finite(text: str) -> float:
    """The number that `text` spells. Raises: Malformed."""
    number = float(text)
    if not math.isfinite(number):
        raise Malformed("A number in the body is too large.")
    return number


def loads(body: bytes, number: Callable[[str], float] = finite) -> Any:
    """The one value that `body` spells; `number` reads what has a point or an exponent.

    Raises: Malformed; what the body holds is not quoted.
    """
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_members, parse_constant=_no_constant, parse_float=number
        )
        _check_depth(value)
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate cannot be written again
    except RecursionError:
        raise Malformed(_TOO_DEEP) from None
    except ValueError:  # JSONDecodeError, Unicode errors, an integer of thousands of digits
        raise Malformed("The body is not JSON in UTF-8.") from None
    return value


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEPTH_MAX):
        level = [
            item
            for each in level
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, dict | list)
        ]
    if level:
        raise Malformed(_TOO_DEEP)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Malformed("An object in the body has a member twice.")
    return members


def _no_constant(name: str) -> None:
    raise Malformed("NaN and Infinity are no JSON.")
