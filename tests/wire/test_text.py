"""Byte order marks: UTF-8's is shed, UTF-16 is named."""

import pytest

from fleet.wire.errors import Malformed
from fleet.wire.text import without_mark


@pytest.mark.parametrize("text", ["", "secret", "\nÜ", "a\ufeffb"])
def test_the_mark_of_utf_8_is_shed(text: str) -> None:
    assert without_mark(text.encode("utf-8-sig")) == without_mark(text.encode()) == text.encode()


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_named(encoding: str) -> None:
    whole = ("\ufeff" + "secret\n").encode(encoding)
    for size in range(3, len(whole) + 1):
        if b"\0" in whole[:size]:
            with pytest.raises(Malformed, match="UTF-16"):
                without_mark(whole[:size])
    assert without_mark(whole[:2]) == whole[:2]  # two octets that a password may be
