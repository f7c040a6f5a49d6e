"""What a peer's bytes can do wrong, as one tree.

    WireError
     ├─ TooLarge      over a size or count that was capped before parsing
     ├─ Malformed     not what it says it is: not base64, not DER, a bad length, bad UTF-8
     │   └─ ProtocolError  well-formed, but what MQTT 5.0 calls a Protocol Error (1.2)
     ├─ BadSignature  well-formed, but its own signature does not verify
     ├─ WeakKey       a key too short, or of a kind that nobody should use
     └─ Unsupported   well-formed, but a version, type or option that we do not speak

Each message is one plain sentence that can be shown to the peer; it never repeats the bytes.
"""


class WireError(Exception):
    """The root: these bytes are refused."""


class TooLarge(WireError):
    """Over a size or count that was capped before parsing."""


class Malformed(WireError):
    """Not what it says it is."""


class ProtocolError(Malformed):
    """Well-formed, but what MQTT 5.0 calls a Protocol Error: its answer is reason 0x82, not 0x81 (4.13.1)."""


class BadSignature(WireError):
    """Its own signature does not verify."""


class WeakKey(WireError):
    """A key too short, or of a kind that nobody should use."""


class Unsupported(WireError):
    """A version, type or option that we do not speak."""
