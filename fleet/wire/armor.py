"""Base64 of EST bodies and PEM blocks: strict in alphabet and padding, tolerant of white space."""

import binascii

LINE_COLUMNS = 64  # RFC 7468, 2; libest wants it too

_WHITE_SPACE = b" \t\r\n"


def unwrap(text: bytes) -> bytes | None:
    """What `text` is base64 of, with CR, LF, space and tab anywhere; None when it is not base64 or empty."""
    packed = text.translate(None, _WHITE_SPACE)
    try:
        data = binascii.a2b_base64(packed, strict_mode=True)
    except binascii.Error:
        return None
    # Even strict mode lets superfluous padding pass: one value, one text.
    return data if data and binascii.b2a_base64(data, newline=False) == packed else None


def one_line(data: bytes) -> bytes:
    """`data` as base64 without any line end."""
    return binascii.b2a_base64(data, newline=False)


def lines(data: bytes) -> bytes:
    """`data` as base64 in lines of LINE_COLUMNS, each ended by LF."""
    text = one_line(data)
    return b"".join(text[at : at + LINE_COLUMNS] + b"\n" for at in range(0, len(text), LINE_COLUMNS))


def pem(label: str, data: bytes) -> str:
    """`data` as the PEM block that `label` names (RFC 7468)."""
    return f"-----BEGIN {label}-----\n{lines(data).decode('ascii')}-----END {label}-----\n"
