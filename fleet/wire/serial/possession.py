"""Proof of possession: the board holds the private key of the certificate that it was given.

The board signs a context, the session and the station's fresh challenge. No other signature of the key covers octets
that begin like the context: those of TLS 1.3 begin with 20, those of TLS 1.2 with 01, those of a CSR with 30.
"""

from fleet.wire.serial.messages import CHALLENGE_SIZE, SESSION_SIZE
from fleet.wire.signatures import sign, verify

__all__ = ["CONTEXT", "sign", "signed_octets", "verify"]

CONTEXT = b"fleet-serial-possession-v1\x00"


def signed_octets(session: bytes, challenge: bytes) -> bytes:
    """The octets to sign: CONTEXT, session, challenge."""
    if len(session) != SESSION_SIZE or len(challenge) != CHALLENGE_SIZE:
        raise ValueError("session or challenge of the wrong size")
    return CONTEXT + session + challenge
