"""Text files as editors write them: the byte order mark of UTF-8 is shed, and UTF-16 is named."""

from fleet.wire.errors import Malformed

UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def without_mark(data: bytes) -> bytes:
    """`data` without UTF-8's byte order mark. Raises: Malformed: it is UTF-16 text, of which every other byte is 0."""
    if data.startswith(UTF16_MARKS) and b"\0" in data:
        raise Malformed("The file is UTF-16 text; save it as UTF-8.")
    return data.removeprefix(UTF8_MARK)
