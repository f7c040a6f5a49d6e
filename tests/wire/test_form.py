"""Forms: every field once, in UTF-8, or the form is refused."""

from urllib.parse import urlencode

import pytest

from fleet.wire import form
from fleet.wire.errors import Malformed, TooLarge, WireError


def test_what_others_write_is_read() -> None:
    fields = {"name": "a b+c&d=e%f", "variable_map.id": "\u00e4\U0001f600", "\u00e4": "", "~": "/.-_"}
    assert form.loads(urlencode(fields).encode()) == fields


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"a", b"=b", b"a=1&a=2", b"%61=1&a=2", b"a=1&", b"&a=1"),
        *(b"a=%", b"a=%4", b"a=%GG", b"a=\xff", b"a=%ff", b"a=b=c", b"a=b c"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        form.loads(body)


def test_no_more_fields_than_there_can_be() -> None:
    with pytest.raises(TooLarge):
        form.loads(b"&".join(b"a%d=1" % number for number in range(form.FIELDS_MAX + 1)))


def test_every_beginning_of_a_form_is_read_or_refused() -> None:
    body = urlencode({"name": "a b+c&d", "\u00e4": "\u00e4=", "c": "1"}).encode()
    for size in range(len(body)):
        try:
            fields = form.loads(body[:size])
        except WireError:
            continue
        assert form.loads(urlencode(fields).encode()) == fields
