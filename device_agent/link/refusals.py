"""What the end of a connection means, and what to do about it, in words for the log and `status`. No I/O."""

import os
import ssl
from typing import Any

from paho.mqtt.reasoncodes import ReasonCode

from device_agent.core import Setback
from device_agent.errors import KeyStoreFailed
from fleet.est_client.errors import ClientError
from fleet.est_client.tls import is_refusal, is_refusal_text

REASON_SIZE_MAX = 300  # characters of the server's sentence that are repeated

# MQTT 5.0, 3.2.2.2: reason codes that stay the same until an operator changes something.
_ASK = "ask the fleet's operator to check it with `fleet device show`"
_NOT_AUTHORIZED = 0x87
_BANNED = 0x8A
_WITH_CAUSE = (_NOT_AUTHORIZED, _BANNED)
_REFUSALS = {
    0x85: f"the certificate belongs to another device id: {_ASK}",
    0x86: f"the gateway did not accept this identity: {_ASK}",
    _NOT_AUTHORIZED: f"the gateway did not authorize this certificate: {_ASK}; if it has expired, enroll again with a "
    "new token",
    _BANNED: f"this device is suspended, revoked or retired, or its certificate is revoked: {_ASK}; a suspended device "
    "reconnects automatically once resumed; one with a revoked certificate must enroll again with a new token: "
    "device-agent enroll --again; a revoked or retired device needs a new id",
    0x8C: f"the gateway does not accept this authentication method: {_ASK}",
}
"""Meaning of each refusal, and the next step."""
_ENDED = "no token brings it back; register the hardware under a new id, then: device-agent reset --all, init, enroll"
_AGAIN = "with a new token, device-agent enroll --again"
_CAUSES = (
    (
        "certificate presented is revoked",
        Setback.ENDED,
        f"the certificate is revoked: {_AGAIN}",
        "certificate-revoked",
    ),
    (
        "is suspended",
        Setback.REFUSED,
        "this device is suspended: it reconnects by itself once it is resumed (fleet device resume)",
        "device-suspended",
    ),
    ("is revoked", Setback.ENDED, f"this device is revoked: {_ENDED}", "device-revoked"),
    ("is retired", Setback.ENDED, f"this device is retired: {_ENDED}", "device-retired"),
    (
        "is not known here",
        Setback.ENDED,
        f"the fleet does not know this certificate: {_AGAIN}",
        "certificate-unknown",
    ),
)
"""Words of the fleet's own sentence (over MQTT 5), whether it can be lifted, its meaning, and the fleet's code."""
_TAKEN_OVER = 0x8E  # another client uses our identity: immediate retries would disconnect each other in turn
_BAD_VERSION = 0x84


def explained(error: Exception, *, is_authenticated: bool) -> tuple[Setback, str]:
    """Of an attempt that failed before CONNECT. `is_authenticated`: the server is, since the handshake was over."""
    if isinstance(error, ClientError):
        return Setback.UNUSABLE if isinstance(error, KeyStoreFailed) else Setback.NETWORK, error.message.rstrip(".")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Setback.UNTRUSTED, f"the server's certificate did not verify: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        # In the handshake anybody on the way can send an alert: it is not protected, but from TLS 1.3 on, where our
        # certificate is verified after it.
        setback = Setback.REFUSED if is_refusal(error) and is_authenticated else Setback.NETWORK
        return setback, f"TLS failed: {error.reason or error}"
    plain = isinstance(error, OSError) and error.errno is not None and error.errno > 0 and error.strerror
    known = os.strerror(error.errno) if plain and isinstance(error, OSError) and error.errno is not None else ""
    return Setback.NETWORK, f"no connection: {known or str(error) or type(error).__name__}"


def explained_text(text: str) -> tuple[Setback, str]:
    """Of an error that paho passes on as text."""
    # In TLS 1.3 the server verifies our certificate after our side of the handshake is complete: the alert comes with
    # the first read.
    return (Setback.REFUSED if is_refusal_text(text) else Setback.NETWORK), text.removeprefix(
        "failed to receive on socket: "
    )


def explained_connack(code: ReasonCode, properties: Any) -> tuple[Setback, str, str]:
    """Of a CONNACK that is no success: by the cause, where the server names it; then with the fleet's code."""
    if code.value == _BAD_VERSION:
        return Setback.PROTOCOL, f"CONNACK: {code}", ""
    if code.value not in _REFUSALS:
        return Setback.NETWORK, f"CONNACK: {code}", ""
    said = str(getattr(properties, "ReasonString", "")) if code.value in _WITH_CAUSE else ""
    setback, meaning, cause = next(
        ((setback, each, cause) for words, setback, each, cause in _CAUSES if words in said),
        (Setback.REFUSED, _REFUSALS[code.value], ""),
    )
    return setback, f"{meaning} (CONNACK: {with_reason(code, properties)})", cause


def explained_disconnect(code: ReasonCode, properties: Any) -> tuple[Setback, str]:
    """Of the server's DISCONNECT."""
    said = with_reason(code, properties)
    if code.value != _TAKEN_OVER:
        return Setback.CLOSED, f"the server disconnected: {said}"
    return Setback.REFUSED, f"the server disconnected: another client uses this device's id or certificate ({said})"


def with_reason(code: ReasonCode, properties: Any) -> str:
    """The reason code, and the server's own sentence if it has one (MQTT 5.0, 3.2.2.3.9, 3.4.2.2.2 and 3.14.2.2.3)."""
    said = str(getattr(properties, "ReasonString", ""))
    shown = "".join(each for each in said[:REASON_SIZE_MAX] if each.isprintable()).rstrip(".")
    return f"{code}{': ' if shown else ''}{shown}"
