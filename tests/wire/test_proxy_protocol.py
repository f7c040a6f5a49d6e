"""PROXY headers: what each says, cut at every byte, and what no balancer sends."""

import pytest

from fleet.wire.errors import Malformed, TooLarge, Unsupported, WireError
from fleet.wire.proxy_protocol import (
    V1_SIZE_MAX,
    V2_SIGNATURE,
    V2_SIZE_MAX,
    ProvedClient,
    ProxyHeader,
    encode_header,
    may_begin_header,
    read_header,
)

HELLO = b"\x16\x03\x01\x02\x00"  # the client's own
IPV4 = b"\xc6\x33\x64\x07" + b"\x0a\0\0\x01" + b"\xc3\x51" + b"\x22\xb3"
IPV6 = bytes.fromhex("20010db8000000000000000000000007") + bytes(15) + b"\x01" + b"\xc3\x51" + b"\x22\xb3"
MAPPED = bytes(10) + b"\xff\xff\xc6\x33\x64\x07" + bytes(10) + b"\xff\xff\x0a\0\0\x01" + bytes(4)
LONGEST_V1 = b"PROXY UNKNOWN " + b"x" * (V1_SIZE_MAX - 16) + b"\r\n"


def extension(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2) + value


TLS = extension(0x20, b"\x07\0\0\0\0" + extension(0x21, b"TLSv1.3") + extension(0x22, "Gerät 7".encode()))
UNIQUE_ID = extension(0x05, b"\0\x01\x02")  # opaque: no text
EXTENSIONS = TLS + UNIQUE_ID + extension(0x02, b"mqtt.example") + extension(0x30, b"blue") + extension(0x04, b"")


def v2(body: bytes, *, family: int = 0x11, first: int = 0x21, size: int | None = None) -> bytes:
    return V2_SIGNATURE + bytes((first, family)) + (len(body) if size is None else size).to_bytes(2) + body


GOOD = {
    b"PROXY TCP4 198.51.100.7 10.0.0.1 50001 8883\r\n": "198.51.100.7",
    b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 0\r\n": "255.255.255.255",
    b"PROXY TCP6 2001:db8::7 ::1 50001 8883\r\n": "2001:db8::7",
    b"PROXY TCP6 2001:0DB8:0000:0000:0000:0000:0000:0007 ::1 1 2\r\n": "2001:db8::7",
    b"PROXY TCP6 ::ffff:198.51.100.7 ::ffff:10.0.0.1 1 2\r\n": "198.51.100.7",
    v2(IPV4): "198.51.100.7",
    v2(IPV4 + EXTENSIONS): "198.51.100.7",
    v2(IPV6, family=0x21): "2001:db8::7",
    v2(IPV6 + EXTENSIONS, family=0x21): "2001:db8::7",
    v2(MAPPED, family=0x21): "198.51.100.7",
    v2(b"", first=0x20, family=0): None,
    v2(IPV4 + b"\x04", first=0x20): None,  # LOCAL: the rest is not looked at
    v2(bytes(V2_SIZE_MAX - 16), first=0x20): None,
}


@pytest.mark.parametrize(("header", "client"), GOOD.items())
def test_a_header_is_read_however_it_is_cut(header: bytes, client: str | None) -> None:
    for end in range(len(header)):
        assert read_header(header[:end]) is None
    for behind in (b"", HELLO[:1], HELLO):
        assert read_header(header + behind) == ProxyHeader(client, len(header))


ADDRESSES = b"\xc6\x33\x64\x07" + b"\x0a\0\0\x01"
BY_CERTIFICATE = b"\x07\0\0\0\0"


@pytest.mark.parametrize(
    ("client", "header"),
    [
        (None, v2(b"", first=0x20, family=0)),
        (
            ProvedClient(("198.51.100.7", 50001), ("10.0.0.1", 8883), "cam-7", "TLSv1.3"),
            v2(IPV4 + extension(0x20, BY_CERTIFICATE + extension(0x21, b"TLSv1.3") + extension(0x22, b"cam-7"))),
        ),
        (
            ProvedClient(("198.51.100.7", 0), ("::ffff:10.0.0.1", 0), "cam-7", ""),
            v2(ADDRESSES + bytes(4) + extension(0x20, BY_CERTIFICATE + extension(0x22, b"cam-7"))),
        ),
        (
            ProvedClient(("198.51.100.7", 1), ("::1", 2), "c" * 64, ""),
            v2(
                bytes(10)
                + b"\xff\xff\xc6\x33\x64\x07"
                + bytes(15)
                + b"\x01\0\x01\0\x02"
                + extension(0x20, BY_CERTIFICATE + extension(0x22, b"c" * 64)),
                family=0x21,
            ),
        ),
        (
            ProvedClient(("fe80::7%eth0", 65535), ("fe80::1%eth0", 8883), "cam-7", "TLSv1.2"),
            v2(
                bytes.fromhex("fe80" + "00" * 13 + "07" + "fe80" + "00" * 13 + "01" + "ffff22b3")
                + extension(0x20, BY_CERTIFICATE + extension(0x21, b"TLSv1.2") + extension(0x22, b"cam-7")),
                family=0x21,
            ),
        ),
    ],
)
def test_what_we_write_is_read_however_it_is_cut(client: ProvedClient | None, header: bytes) -> None:
    assert encode_header(client) == header
    for end in range(len(header)):
        assert read_header(header[:end]) is None
    address = client.source[0].partition("%")[0] if client else None
    assert read_header(header + HELLO) == ProxyHeader(address, len(header))


BAD = {
    b"PROXY\tTCP4 198.51.100.7 10.0.0.1 1 2\r\n": Malformed,
    b"proxy TCP4 198.51.100.7 10.0.0.1 1 2\r\n": Malformed,
    b"PROXY  TCP4 198.51.100.7 10.0.0.1 1 2\r\n": Malformed,
    b"PROXY TCP4 198.51.100.7 10.0.0.1 1\r\n": Malformed,
    b"PROXY TCP4 198.51.100.7 10.0.0.1 1 2 \r\n": Malformed,
    b"PROXY TCP4 198.51.100.7 10.0.0.1 1 2\n\r\n": Malformed,
    b"PROXY TCP4 198.51.100.007 10.0.0.1 1 2\r\n": Malformed,
    b"PROXY TCP4 198.51.100.256 10.0.0.1 1 2\r\n": Malformed,
    b"PROXY TCP4 198.51.100.7 10.0.0.999 1 2\r\n": Malformed,
    b"PROXY TCP4 2001:db8::7 ::1 1 2\r\n": Malformed,
    b"PROXY TCP6 198.51.100.7 10.0.0.1 1 2\r\n": Malformed,
    b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n": Malformed,
    b"PROXY TCP4 198.51.100.7 10.0.0.1 01 2\r\n": Malformed,
    b"PROXY TCP4 198.51.100.7 10.0.0.1 1 65536\r\n": Malformed,
    b"PROXY TCP4 198.51.100.7 10.0.0.1 -1 2\r\n": Malformed,
    "PROXY TCP4 ١98.51.100.7 10.0.0.1 1 2\r\n".encode(): Malformed,
    b"PROXY UDP4 198.51.100.7 10.0.0.1 1 2\r\n": Malformed,
    b"PROXY \r\n": Malformed,
    b"PROXY UNKNOWN\r\n": Unsupported,
    LONGEST_V1: Unsupported,
    LONGEST_V1.replace(b"\r", b"x"): TooLarge,
    v2(IPV4, first=0x11): Unsupported,
    v2(IPV4, first=0x22): Unsupported,
    v2(IPV4, first=0x2F): Unsupported,
    v2(b"", family=0): Unsupported,
    v2(IPV4, family=0): Unsupported,
    v2(IPV4, family=0x12): Unsupported,  # UDP
    v2(bytes(216), family=0x31): Unsupported,  # Unix
    v2(IPV4[:-1]): Malformed,
    v2(b""): Malformed,
    v2(IPV4, family=0x21): Malformed,
    v2(b"", size=V2_SIZE_MAX - 15): TooLarge,
    v2(b"", size=65535): TooLarge,
    v2(b"", first=0x20, size=65535): TooLarge,
    v2(IPV4 + b"\x04"): Malformed,
    v2(IPV4 + b"\x04\0"): Malformed,
    v2(IPV4 + b"\x04\0\x01"): Malformed,
    v2(IPV4 + EXTENSIONS[:-1]): Malformed,
    v2(IPV4 + extension(0x20, b"\x07\0\0\0")): Malformed,
    v2(IPV4 + extension(0x20, b"\x07\0\0\0\0" + b"\x22\0\x05abcd")): Malformed,
    V2_SIGNATURE[:-1] + b"\r": Malformed,
}


@pytest.mark.parametrize(("header", "error"), BAD.items())
def test_what_is_no_header_of_a_tcp_client_is_refused_at_every_cut(header: bytes, error: type[WireError]) -> None:
    with pytest.raises(error):
        read_header(header)
    for end in range(len(header)):
        try:
            assert read_header(header[:end]) is None
        except error:
            continue


@pytest.mark.parametrize("byte", [b"\0", b"\n", b"\r", b"\x1b", b"\x1f", b"\x7f"])
@pytest.mark.parametrize("kind", [0x02, 0x30, 0x21, 0x22, 0x23, 0x24, 0x25])
def test_control_characters_in_texts_are_refused(kind: int, byte: bytes) -> None:
    text = extension(kind, b"a" + byte + b"b")
    inner = text if kind in (0x02, 0x30) else extension(0x20, b"\x07\0\0\0\0" + text)
    with pytest.raises(Malformed, match="control"):
        read_header(v2(IPV4 + inner))


@pytest.mark.parametrize(
    "data", [HELLO, b"GET / HTTP/1.1\r\n", b"\r\n\r\n\0\r\nQUIZ", b"PROXY\r\n", b"\x10\x0e\0\x04MQTT"]
)
def test_what_begins_otherwise_is_told_apart_at_once(data: bytes) -> None:
    assert not may_begin_header(data)
    with pytest.raises(Malformed, match="no PROXY header"):
        read_header(data)
