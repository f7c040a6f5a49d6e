"""HTTP policy: methods and paths of an HTTP API that a device may use, decided for a reverse proxy.

    GET,HEAD /v1/devices/{id}/**      methods, a space, a path; * is one segment, ** at the end any number of them

A backend decodes and normalizes a path in its own way. A path that two programs could read differently is therefore
refused before any rule is asked: what is allowed here is what the backend serves.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from fleet.domain.errors import Invalid, Refused

RULES_MAX = 64  # each is tried for every request
RULE_SIZE_MAX = 1024
TARGET_SIZE_MAX = 8192  # nginx has as much for a request line

_METHOD = re.compile(r"[A-Z][A-Z-]{0,31}")
_SEGMENT = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,=:@]|%[0-9A-Fa-f]{2})*")  # RFC 3986, 3.3, without ";"
_AMBIGUOUS = {"/": "slash", "\\": "backslash", "%": "percent sign", ";": "semicolon", "?": "?", "#": "#"}
_DOTS = (".", "..")


class HttpRule(Struct, frozen=True):
    """One rule, read."""

    methods: frozenset[str]
    """Empty: any."""
    segments: tuple[str, ...]
    is_open: bool
    """Whether anything may follow `segments`."""

    def allows(self, method: str, segments: Sequence[str], device: str, model: str) -> bool:
        if self.methods and method not in self.methods:
            return False
        if len(segments) < len(self.segments) or (len(segments) > len(self.segments) and not self.is_open):
            return False
        return all(
            have != "" if want == "*" else have == _filled(want, device, model)
            for want, have in zip(self.segments, segments, strict=False)
        )


@functools.lru_cache(maxsize=4096)
def http_rule(text: str) -> HttpRule:
    """Raises: Invalid (`bad-rule`)."""
    methods, _, path = text.partition(" ")
    named = methods.split(",")
    segments = path.split("/")[1:]
    is_open = segments[-1:] == ["**"]
    literal = segments[:-1] if is_open else segments
    if (
        len(text) > RULE_SIZE_MAX
        or not (methods == "*" or all(_METHOD.fullmatch(name) for name in named))
        or not path.startswith("/")
        or not all(_is_literal(each) for each in literal)
        or "" in literal[:-1]
        or (is_open and "" in literal)
    ):
        raise Invalid(
            "bad-rule",
            f"{text[:80]!r} is not a rule for HTTP requests.",
            "Write methods and a path: 'GET,HEAD /v1/devices/{id}/**'; * means any method, and for one segment.",
        )
    return HttpRule(frozenset() if methods == "*" else frozenset(named), tuple(literal), is_open)


def _is_literal(segment: str) -> bool:
    """Whether `segment` of a rule can match one of a path."""
    return segment == "*" or ("*" not in segment and not _why_ambiguous(segment))


def _filled(segment: str, device: str, model: str) -> str:
    return segment.replace("{id}", device).replace("{model}", model)


def may_request(rules: Sequence[str], method: str, target: str, *, device: str, model: str) -> bool:
    """Whether one of `rules` allows `method` on `target`, a request target in origin form with or without a query.

    Raises: Refused (`bad-target`): the method or the path is malformed or ambiguous.
    """
    if not _METHOD.fullmatch(method):
        raise _bad_target("The method is malformed.")
    segments = path_segments(target)
    return any(http_rule(rule).allows(method, segments, device, model) for rule in rules)


def path_segments(target: str) -> tuple[str, ...]:
    """The decoded segments of the path in `target`: "/a/b%20c?q" is ("a", "b c"), "/a/" is ("a", "").

    Raises: Refused (`bad-target`): another program might read it as another path.
    """
    if len(target) > TARGET_SIZE_MAX:
        raise _bad_target(f"The request target is longer than {TARGET_SIZE_MAX} characters.")
    if not target.startswith("/"):
        raise _bad_target("The request target is not a path.")
    if "#" in target:
        raise _bad_target("The request target has a fragment.")
    encoded = target.partition("?")[0].split("/")[1:]
    if "" in encoded[:-1]:
        raise _bad_target("The path has an empty segment.")
    return tuple(_decoded(segment) for segment in encoded)


def _decoded(encoded: str) -> str:
    if ";" in encoded:
        raise _bad_target("The path has a semicolon.")
    if not _SEGMENT.fullmatch(encoded):
        raise _bad_target("The path has a character that RFC 3986 does not allow, or a bad percent-encoding.")
    try:
        segment = unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        raise _bad_target("The path is not UTF-8.") from None
    if why := _why_ambiguous(segment):
        raise _bad_target(f"The path has {why}.")
    return segment


def _why_ambiguous(segment: str) -> str:
    """What in a decoded segment another program might read differently; "" for nothing."""
    if segment in _DOTS:
        return "a dot segment"
    if any(unicodedata.category(character) == "Cc" for character in segment):
        return "a control character"
    if unicodedata.normalize("NFC", segment) != segment:
        return "text that is not in the normalization form NFC"
    alike = unicodedata.normalize("NFKC", segment)  # some take a full-width dot for a dot
    if alike in _DOTS:
        return "a dot segment"
    found = next((name for character, name in _AMBIGUOUS.items() if character in segment + alike), "")
    return f"an encoded {found}" if found else ""


def _bad_target(why: str) -> Refused:
    return Refused("bad-target", why)
