"""PROXY protocol headers, versions 1 and 2: the client's address, as a balancer in front of us says it, or as we say it
to a broker behind us, with the name that the client's certificate has proved.

proxy-protocol.txt of HAProxy (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt). Only a header for a TCP
client, and LOCAL, by which a balancer speaks for itself, are read; extensions (TLVs) are checked and not used. What we
write is version 2.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from fleet.wire.errors import Malformed, TooLarge, Unsupported

V1_START = b"PROXY "
V1_SIZE_MAX = 107  # 2.1: with CRLF; no line of two addresses and ports is longer
V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V2_FIXED_SIZE = 16  # 2.2: signature, version and command, family and transport, length of the rest
V2_SIZE_MAX = 4096
"""All of it. Extensions about a client's certificate have some hundreds of bytes."""

LOCAL, PROXY = 0, 1
TCP_OVER_IPV4, TCP_OVER_IPV6 = 0x11, 0x21
_ADDRESS_SIZES = {TCP_OVER_IPV4: 4, TCP_OVER_IPV6: 16}

AUTHORITY, SSL, NETNS = 0x02, 0x20, 0x30
SSL_FIXED_SIZE = 5  # 2.2.6: flags and the result of the verification; extensions follow
SSL_TEXTS = range(0x21, 0x26)  # version, common name, cipher, signature and key algorithm
SSL_VERSION, SSL_COMMON_NAME = SSL_TEXTS[:2]
BY_CERTIFICATE = 0x01 | 0x02 | 0x04  # over TLS, with a certificate in this connection and in the TLS session

Endpoint = tuple[str, int]
"""IP address and port; 0: a port that is not known."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a header says."""

    client: str | None
    """IP address of the client; None: the balancer speaks for itself (LOCAL)."""
    size: int
    """Number of bytes of the header, after which the client's begin."""


@dataclass(frozen=True, slots=True)
class ProvedClient:
    """A client whose certificate was verified, as the header of version 2 says it."""

    source: Endpoint
    destination: Endpoint
    """Where it has connected to."""
    common_name: str
    tls_version: str
    """"TLSv1.3"; "" for none."""


def encode_header(client: ProvedClient | None) -> bytes:
    """The header of version 2 for a connection on behalf of `client`; None: of our own (LOCAL)."""
    if client is None:
        return V2_SIGNATURE + bytes((0x20 | LOCAL, 0, 0, 0))
    ends = [(ip_address(host.partition("%")[0]), port) for host, port in (client.source, client.destination)]
    is_v4 = all(_plain(address).count(".") for address, _ in ends)
    addresses = b"".join(_packed(address, is_v4=is_v4) for address, _ in ends)
    ports = b"".join(port.to_bytes(2) for _, port in ends)
    version = _extension(SSL_VERSION, client.tls_version.encode()) if client.tls_version else b""
    texts = version + _extension(SSL_COMMON_NAME, client.common_name.encode())
    verified = bytes(4)  # X509_V_OK
    body = addresses + ports + _extension(SSL, bytes((BY_CERTIFICATE,)) + verified + texts)
    family = TCP_OVER_IPV4 if is_v4 else TCP_OVER_IPV6
    return V2_SIGNATURE + bytes((0x20 | PROXY, family)) + len(body).to_bytes(2) + body


def _packed(address: IPv4Address | IPv6Address, *, is_v4: bool) -> bytes:
    """4 octets, or 16: an IPv4 address is then mapped."""
    if is_v4:
        return IPv4Address(_plain(address)).packed
    return address.packed if isinstance(address, IPv6Address) else bytes(10) + b"\xff\xff" + address.packed


def _extension(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2) + value


def may_begin_header(data: bytes) -> bool:
    """Whether `data` is the beginning of a header, as far as it goes."""
    return any(data[: len(start)] == start[: len(data)] for start in (V1_START, V2_SIGNATURE))


def read_header(data: bytes) -> ProxyHeader | None:
    """The header that `data` begins with; None while it is incomplete, which takes at most V2_SIZE_MAX bytes.

    Raises: WireError.
    """
    if not may_begin_header(data):
        raise Malformed("There is no PROXY header.")
    return _read_v1(data) if data[:1] == V1_START[:1] else _read_v2(data)


def _read_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, V1_SIZE_MAX)
    if end < 0:
        if len(data) >= V1_SIZE_MAX:
            raise TooLarge("The PROXY header is longer than 107 bytes.")
        return None
    match data[:end].split(b" "):
        case [_, b"UNKNOWN", *_]:
            raise Unsupported("The PROXY header does not say the client's address.")
        case [_, b"TCP4" | b"TCP6" as family, *addresses, source_port, port] if len(addresses) == 2:
            client, _ = (_address_in(text, IPv4Address if family == b"TCP4" else IPv6Address) for text in addresses)
            if not _is_port(source_port) or not _is_port(port):
                raise Malformed("The PROXY header has an invalid port.")
            return ProxyHeader(client, end + 2)
    raise Malformed("The PROXY header is not that of a TCP client.")


def _address_in(text: bytes, kind: type[IPv4Address | IPv6Address]) -> str:
    try:
        address = kind(text.decode("ascii"))
    except ValueError as error:
        raise Malformed("The PROXY header has an invalid address.") from error
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise Malformed("The PROXY header has an address with a scope.")
    return _plain(address)


def _is_port(text: bytes) -> bool:
    return re.fullmatch(rb"0|[1-9][0-9]{0,4}", text) is not None and int(text) <= 65535


def _plain(address: IPv4Address | IPv6Address) -> str:
    """An IPv4 address also where it came as an IPv6 one."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _read_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < V2_FIXED_SIZE:
        return None
    version, command = data[12] >> 4, data[12] & 0x0F
    if version != 2 or command not in (LOCAL, PROXY):
        raise Unsupported("The PROXY header has a version or command that is not supported.")
    size = V2_FIXED_SIZE + int.from_bytes(data[14:V2_FIXED_SIZE])
    if size > V2_SIZE_MAX:
        raise TooLarge("The PROXY header is longer than 4096 bytes.")
    if len(data) < size:
        return None
    if command == LOCAL:  # 2.2: addresses are to be ignored
        return ProxyHeader(None, size)
    width = _ADDRESS_SIZES.get(data[13])
    if width is None:
        raise Unsupported("The PROXY header does not say the address of a TCP client.")
    extensions = V2_FIXED_SIZE + 2 * width + 4  # two addresses, two ports
    if size < extensions:
        raise Malformed("The PROXY header is too short for its addresses.")
    _check_extensions(data[extensions:size])
    source = data[V2_FIXED_SIZE : V2_FIXED_SIZE + width]
    return ProxyHeader(_plain(IPv4Address(source) if width == 4 else IPv6Address(source)), size)


def _check_extensions(data: bytes) -> None:
    """Raises: Malformed: they do not fill `data`, or a text has control characters."""
    for kind, value in _extensions(data):
        if kind in (AUTHORITY, NETNS):
            _check_text(value)
        elif kind == SSL:
            if len(value) < SSL_FIXED_SIZE:
                raise Malformed("The PROXY header has an extension about TLS that is too short.")
            for inner, text in _extensions(value[SSL_FIXED_SIZE:]):
                if inner in SSL_TEXTS:
                    _check_text(text)


def _extensions(data: bytes) -> list[tuple[int, bytes]]:
    """Type and value of each."""
    found, at = [], 0
    while at < len(data):
        begin = at + 3
        end = begin + int.from_bytes(data[at + 1 : begin])
        if begin > len(data) or end > len(data):
            raise Malformed("The PROXY header has an extension that goes beyond its end.")
        found.append((data[at], data[begin:end]))
        at = end
    return found


def _check_text(value: bytes) -> None:
    if re.search(rb"[\x00-\x1f\x7f]", value):
        raise Malformed("The PROXY header has an extension with control characters.")
