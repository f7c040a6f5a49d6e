"""Test vectors for implementations of the protocol: messages, octets to refuse, possession signatures.

PROTOCOL.md prints them, `firmware-tools vectors` prints them as JSON; tests keep the three equal.
"""

from dataclasses import dataclass

from fleet.wire.serial import messages as m
from fleet.wire.serial.frames import encode_frame
from fleet.wire.serial.messages import Blob, FailureCode, Message, encode
from fleet.wire.serial.possession import signed_octets

SESSION = bytes.fromhex("a1b2c3d4e5f60718")
CHALLENGE = bytes(range(32))
_DIGEST = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


@dataclass(frozen=True, slots=True)
class Vector:
    name: str
    message: Message

    @property
    def payload(self) -> bytes:
        return encode(self.message)

    @property
    def frame(self) -> bytes:
        """With both delimiters."""
        return encode_frame(self.payload)


def _vector(name: str, step: int, body: m.Body) -> Vector:
    return Vector(name, Message(SESSION, step, body))


MESSAGES = (
    _vector("hello", 0, m.Hello((1,), "line-1")),
    _vector(
        "device info",
        0,
        m.DeviceInfo(1, "SN-0001", "pump", "1.4.2", ("EC-P256", "Ed25519"), 256, m.PROVISIONED, "pump-7"),
    ),
    _vector("device info of a blank board", 0, m.DeviceInfo(1, "SN-0001", "pump", "", ("EC-P256",), 64, m.BLANK, "")),
    _vector("make key", 1, m.MakeKey("pump-7", "EC-P256", False)),
    _vector("csr ready", 1, m.CsrReady(237, _DIGEST)),
    _vector("read csr", 2, m.ReadCsr(0)),
    _vector("csr chunk", 2, m.CsrChunk(0, bytes.fromhex("3081ea3081910201003014"))),
    _vector("write begin", 3, m.WriteBegin(Blob.CHAIN, 1024, _DIGEST)),
    _vector("write ready", 3, m.WriteReady(Blob.CHAIN)),
    _vector("write chunk", 4, m.WriteChunk(Blob.CHAIN, 256, bytes(16))),
    _vector("chunk stored", 4, m.ChunkStored(Blob.CHAIN, 272)),
    _vector("install", 5, m.Install("https://est.example:8443", "mqtt.example", 8883)),
    _vector("installed", 5, m.Installed(_DIGEST)),
    _vector("prove", 6, m.Prove(CHALLENGE)),
    _vector("proof", 6, m.Proof(bytes.fromhex("3006020101020102"))),
    _vector("finish", 7, m.Finish()),
    _vector("finished", 7, m.Finished("pump-7", _DIGEST)),
    _vector("abort", 300, m.Abort(FailureCode.STOPPED, "Stopped by the operator.")),
    _vector("failed", 65535, m.Failed(FailureCode.NO_SESSION, "There is no such session.")),
)
"""At least one of each kind; steps of one, two and three octets."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Octets that a board must refuse."""

    name: str
    octets: bytes
    """A frame if `answer` is "frame", else a payload."""
    answer: str
    """"frame": dropped by the frame reader. "silence": a payload without a readable header cannot be answered. Else the
    name of the failure code."""


_FINISH = _vector("", 0, m.Finish())
_HEADER = bytes.fromhex("850108") + bytes.fromhex("48") + SESSION

REFUSED = (
    Refused("a wrong CRC", _FINISH.frame[:-2] + bytes((_FINISH.frame[-2] ^ 1, 0)), "frame"),
    Refused("too short for a CRC", bytes.fromhex("000401020300"), "frame"),
    Refused("not COBS", bytes.fromhex("0009010200"), "frame"),
    Refused("version 2", b"\x85\x02" + _FINISH.payload[2:], "UNSUPPORTED"),
    Refused("kind 40", _FINISH.payload[:2] + b"\x18\x28" + _FINISH.payload[3:], "UNSUPPORTED"),
    Refused("octets after the end", _FINISH.payload + b"\x00", "MALFORMED"),
    Refused("step 0 in two octets", _HEADER + bytes.fromhex("1800a0"), "MALFORMED"),
    Refused("a field too many", _HEADER + bytes.fromhex("00a10101"), "MALFORMED"),
    Refused("a session of 7 octets", bytes.fromhex("85010847") + SESSION[:7] + bytes.fromhex("00a0"), "silence"),
    Refused("indefinite length", bytes.fromhex("9f010848") + SESSION + bytes.fromhex("00a0ff"), "silence"),
    Refused("a tag", bytes.fromhex("d9d9f7") + _FINISH.payload, "silence"),
)


@dataclass(frozen=True, slots=True)
class Possession:
    """A proof of possession with a published key: never use it."""

    name: str
    private_key: bytes
    """Ed25519: the 32-octet seed. EC-P256: the scalar."""
    signature: bytes
    deterministic: bool
    """Whether signing again yields the same octets."""


SIGNED = signed_octets(SESSION, CHALLENGE)

POSSESSION = (
    Possession(
        "Ed25519, the key of RFC 8032, 7.1, test 1",
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"),
        bytes.fromhex(
            "de197b3eeac70e5539f792e4a9f981b8bf6891344e41ad473d3b39855cea27d8"
            "e26d3e790a91aa89dc1bd533fdf88790119a16f2c0883ee39c5b89446213440b"
        ),
        True,
    ),
    Possession(
        "EC-P256 with SHA-256, the key of RFC 6979, A.2.5",
        bytes.fromhex("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721"),
        bytes.fromhex(
            "3045022052c3cd89fa971a6f8d19ac5fd3d99904ee715eee09c7b0d9ba2fe3783daa9100"
            "022100c14b729bbc61c6dea111654512002ea26300fa5bf178b6f325a3cc6bbe9fdd9b"
        ),
        False,
    ),
)
