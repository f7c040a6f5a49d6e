"""Framing of a serial line: COBS, with a CRC-32 and zero as the delimiter.

    00  COBS( payload  CRC-32 )  00

Zero never occurs inside a frame, so the reader resynchronizes at the next zero after anything: a boot log, half a
frame, line noise. What does not decode is dropped and counted.
"""

import zlib
from dataclasses import dataclass

from cobs import cobs

from fleet.wire.errors import TooLarge

DELIMITER = b"\x00"

PAYLOAD_SIZE_MAX = 1024
"""Octets of one message: what a board with a few kilobytes of RAM can buffer twice."""

CRC_SIZE = 4

_BLOCK_SIZE = 254  # COBS adds one octet for each started block of this many
ENCODED_SIZE_MAX = PAYLOAD_SIZE_MAX + CRC_SIZE + (PAYLOAD_SIZE_MAX + CRC_SIZE) // _BLOCK_SIZE + 1
"""Octets between two delimiters."""


def crc32(payload: bytes) -> bytes:
    """The frame check sequence, 4 octets, big-endian: CRC-32/ISO-HDLC, as in Ethernet and zlib."""
    return zlib.crc32(payload).to_bytes(CRC_SIZE, "big")


def encode_frame(payload: bytes) -> bytes:
    """`payload` as one frame, with a delimiter on both sides.

    The leading one ends any noise on the line, which would otherwise become part of the frame.

    Raises: TooLarge over PAYLOAD_SIZE_MAX; ValueError if empty.
    """
    if not payload:
        raise ValueError("a frame carries at least one octet")
    if len(payload) > PAYLOAD_SIZE_MAX:
        raise TooLarge(f"A frame carries at most {PAYLOAD_SIZE_MAX} octets, not {len(payload)}.")
    encoded: bytes = cobs.encode(payload + crc32(payload))
    return DELIMITER + encoded + DELIMITER


@dataclass(slots=True)
class Dropped:
    """Counters of what a reader has dropped, for debugging a line."""

    noise: int = 0
    """Data between delimiters that is not COBS, or too short for a frame: boot logs."""
    bad_crc: int = 0
    oversized: int = 0


class FrameReader:
    """Decoder for a stream of frames, cut anywhere. Buffers at most ENCODED_SIZE_MAX octets."""

    def __init__(self) -> None:
        self.dropped = Dropped()
        self._pending = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        """The payload of each frame that `data` completes, in order."""
        *ends, rest = data.split(DELIMITER)
        payloads = []
        for end in ends:
            self._take(end)
            payload = self._finish()
            if payload is not None:
                payloads.append(payload)
        self._take(rest)
        return payloads

    def _take(self, piece: bytes) -> None:
        if self._skipping:
            return
        if len(self._pending) + len(piece) > ENCODED_SIZE_MAX:
            self._pending.clear()
            self._skipping = True
            self.dropped.oversized += 1
            return
        self._pending += piece

    def _finish(self) -> bytes | None:
        encoded = bytes(self._pending)
        self._pending.clear()
        if self._skipping or not encoded:
            self._skipping = False
            return None
        try:
            block: bytes = cobs.decode(encoded)
        except cobs.DecodeError:
            block = b""
        if len(block) <= CRC_SIZE:
            self.dropped.noise += 1
            return None
        payload, check = block[:-CRC_SIZE], block[-CRC_SIZE:]
        if crc32(payload) != check:
            self.dropped.bad_crc += 1
            return None
        if len(payload) > PAYLOAD_SIZE_MAX:
            self.dropped.oversized += 1
            return None
        return payload
