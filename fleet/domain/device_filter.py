"""Device filter expressions, and cursor texts of a listing.

    model=cam2 and lot=L7 and state=active and group=pilot and expires<30d

Terms are joined by `and`, and all must match. Keys are `model`, `state`, `group`, `expires` and `kind`, which is
`device` or `application`; any other is a tag. A value with a space or a quote is written in double quotes, with `\\"`
and `\\\\` inside. An empty filter is an error: no filter selects every device.
"""

import re
from abc import ABC, abstractmethod
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

from fleet.domain.device import DeviceFilter, DeviceState, Place, device_id, plain_name
from fleet.domain.errors import Invalid
from fleet.domain.model_rules import ModelKind
from fleet.domain.tags import TAGS_MAX, tag_key, tag_value

State = TypeVar("State", bound=StrEnum)

FILTER_MAX = 4096  # characters: every tag a device may have, twice over

_UNITS = {"w": timedelta(weeks=1), "d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}
_SPACE = re.compile(r"[ \t]*")
_KEY = re.compile(r"[^\s=<>!\"']+")
_BARE = re.compile(r"[^\s\"']+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_DURATION = re.compile(r"([0-9]{1,6})([wdhm])")


def parse_filter(text: str, now: datetime) -> DeviceFilter:
    """The filter in `text`; a duration after `expires<` is relative to `now`.

    Raises: Invalid (`bad-filter`): with the position, from 1, and what was expected there.
    """
    given = _DeviceTerms(text, now).read()
    kind, model, state, group, expires = (given.pop(key, None) for key in _DeviceTerms.KEYS)
    tags = tuple(sorted(given.items()))
    if len(tags) > TAGS_MAX:
        raise Invalid("bad-filter", f"The filter names {len(tags)} tags; no device has more than {TAGS_MAX}.")
    return DeviceFilter(model, state, tags, group, expires, kind)


class FilterReader(ABC):
    """Parser of one filter. A language says which keys it has, and what their values mean."""

    KEYS: tuple[str, ...] = ()
    OTHERS = ""
    """What a key that is none of KEYS may be, after "or"; empty: nothing."""
    EXAMPLE = ""

    def __init__(self, text: str, now: datetime) -> None:
        self._text, self._now, self._at = text, now, 0
        self._given: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """The value of each key that is given. Raises: Invalid (`bad-filter`)."""
        if len(self._text) > FILTER_MAX:
            raise Invalid("bad-filter", f"A filter has at most {FILTER_MAX} characters.")
        self._term()
        while self._skip_space() < len(self._text):
            self._and()
            self._term()
        return self._given

    @abstractmethod
    def meaning(self, key: str, value: str) -> Any:
        """What `value` says of `key`. Raises: Invalid."""

    def time(self, value: str) -> datetime:
        return parse_time(value, self._now)

    def _skip_space(self) -> int:
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return self._at

    def _and(self) -> None:
        word = _KEY.match(self._text, self._at)
        if word is None or word[0] != "and":
            self._fail(self._at, "'and'")
        self._at = word.end()

    def _term(self) -> None:
        start = self._skip_space()
        word = _KEY.match(self._text, start)
        if word is None or word[0] == "and":
            self._fail(start, self._known())
        key, self._at = word[0], word.end()
        if key not in self.KEYS and not self.OTHERS:
            self._fail(start, self._known())
        sign = "<" if key == "expires" else "="
        if self._text[self._skip_space() : self._at + 1] != sign:
            self._fail(self._at, f"'{sign}' after {key}")
        self._at += 1
        at = self._skip_space()
        value = self._value(key)
        if key in self._given:
            self._fail(start, f"each key once; {key} is given twice")
        try:
            self._given[key] = self.meaning(key, value)
        except Invalid as error:
            bad_key = key not in self.KEYS and value == value.strip() != ""
            self._fail(start if bad_key else at, f"{error.message[:-1]}. {error.advice}", is_sentence=True)

    def _value(self, key: str) -> str:
        quoted = _QUOTED.match(self._text, self._at)
        if quoted is not None:
            self._at = quoted.end()
            if self._text[self._at : self._at + 1] not in ("", " ", "\t"):
                self._fail(self._at, "a space after the closing quote")
            return re.sub(r"\\(.)", r"\1", quoted[1])
        if self._text[self._at : self._at + 1] == '"':
            self._fail(self._at, 'a closing quote; inside the quotes write \\" and \\\\')
        bare = _BARE.match(self._text, self._at)
        if bare is None:
            self._fail(self._at, f"a value for {key}")
        if bare[0].startswith("="):  # lot==L7 is a slip, and would silently match nothing
            self._fail(self._at, f"a value for {key}, in double quotes if it begins with =")
        self._at = bare.end()
        if self._text[self._at : self._at + 1] in ('"', "'"):
            self._fail(self._at, "a space; a value with quotes in it is put in double quotes")
        return bare[0]

    def _known(self) -> str:
        others = [self.OTHERS] if self.OTHERS else []
        *first, last = [*self.KEYS, *others]
        return f"{', '.join(first)} or {last}"

    def _fail(self, at: int, expected: str, *, is_sentence: bool = False) -> NoReturn:
        found = self._text[at : at + 20]
        seen = f"found {found!r}" if found else "the filter ends"
        what = expected if is_sentence else f"expected {expected}, {seen}"
        raise Invalid(
            "bad-filter",
            f"The filter is wrong at position {at + 1}: {what.rstrip('.')}.",
            f"For instance: {self.EXAMPLE}",
        )


class _DeviceTerms(FilterReader):
    KEYS = ("kind", "model", "state", "group", "expires")
    OTHERS = "a tag's key"
    EXAMPLE = "model=cam2 and lot=L7 and expires<30d"

    def meaning(self, key: str, value: str) -> str | DeviceState | ModelKind | datetime:
        match key:
            case "kind":
                return _named(value, ModelKind, "kind")
            case "expires":
                return self.time(value)
            case "state":
                return state_named(value, DeviceState)
            case "model" | "group":
                return plain_name(value, key)
            case _:
                tag_key(key)
                return tag_value(value)


def state_named(value: str, states: type[State]) -> State:
    """Raises: Invalid (`bad-filter`)."""
    return _named(value, states, "state")


def _named(value: str, values: type[State], what: str) -> State:
    names = [each.value for each in values]
    if value not in names:
        raise Invalid("bad-filter", f"{value[:80]!r} is not a {what}.", f"{what.title()}s are {', '.join(names)}.")
    return values(value)


def parse_time(text: str, now: datetime) -> datetime:
    """`30d` (w, d, h, m) from `now`, a date `2026-12-01` (00:00 UTC), or an RFC 3339 time.

    A space may take the place of T; without a zone it is UTC.

    Raises: Invalid (`bad-time`).
    """
    try:
        if found := _DURATION.fullmatch(text):
            return now + int(found[1]) * _UNITS[found[2]]
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ].+)?", text):
            at = datetime.fromisoformat(text)
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # no such date, or out of range
    raise Invalid("bad-time", f"{text[:80]!r} is not a time.", "Write 30d, 12h, 2026-12-01 or 2026-12-01T12:00:00Z.")


def place_text(place: Place) -> str:
    """`place` as text: an id, prefixed with the expiry and a slash when pages are ordered by expiry."""
    if place.expires_at is None:
        return place.id
    return f"{place.expires_at.astimezone(UTC).isoformat().replace('+00:00', 'Z')}/{place.id}"


def parse_place(text: str, where: DeviceFilter) -> Place:
    """The position in the pages of `where` written by `place_text`; "" for the first.

    Raises: Invalid (`bad-place`): it belongs to another order, or is malformed.
    """
    if not text:
        return Place()
    ending, slash, id_text = text.rpartition("/")
    by_expiry = where.expires_before is not None
    try:
        if bool(slash) is not by_expiry:
            raise ValueError("the other order")
        at = datetime.fromisoformat(ending) if slash else None
        if at is not None and at.tzinfo is None:
            raise ValueError("no time zone")
        return Place(device_id(id_text), at)
    except (ValueError, Invalid) as error:
        form = "TIME/ID, as the listing printed it" if by_expiry else "a device id"
        raise Invalid("bad-place", f"{text[:120]!r} is not a position to resume after.", f"Give {form}.") from error
