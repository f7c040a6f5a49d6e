"""Report of a device's health, signed with the key of its certificate.

    {"report": TEXT, "signature": BASE64}

`report`: a JSON object as text, which is kept as it is. `signature`: as `fleet.wire.signatures`, over CONTEXT and the
text's UTF-8. Members that everybody may rely on: `device_id`; `command`: {"id", "name", "outcome"}, which it answers.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

from fleet.wire import strict_json
from fleet.wire.errors import BadSignature, Malformed, TooLarge
from fleet.wire.signatures import sign, verify

CONTENT_TYPE = "application/json"
REPORT_SIZE_MAX = 16 * 1024  # bytes, signature included; the agent's takes 2 KiB
CONTEXT = b"fleet device report 1\n"  # so that no other signature of a device is one of these


@dataclass(frozen=True, slots=True)
class SignedReport:
    """A report whose signature has been verified."""

    text: str
    """JSON, as it was signed."""
    signature: bytes
    device_id: str


def sign_report(report: Mapping[str, Any], key: PrivateKeyTypes) -> bytes:
    """`report` as it is sent. Raises: Unsupported: no signatures with this type of key; TooLarge."""
    text = json.dumps(report)
    signature = sign(key, CONTEXT + text.encode())
    data = json.dumps({"report": text, "signature": base64.b64encode(signature).decode()}).encode()
    if len(data) > REPORT_SIZE_MAX:
        raise TooLarge(f"The report is larger than {REPORT_SIZE_MAX} bytes.")
    return data


def decode_report(data: bytes, key: PublicKeyTypes) -> SignedReport:
    """The report in `data`, its signature verified with `key`.

    Raises: TooLarge, Malformed, Unsupported, BadSignature.
    """
    if len(data) > REPORT_SIZE_MAX:
        raise TooLarge(f"The report is larger than {REPORT_SIZE_MAX} bytes.")
    tree = strict_json.loads(data)
    text, encoded = (tree.get("report"), tree.get("signature")) if isinstance(tree, dict) else (None, None)
    if not isinstance(text, str) or not isinstance(encoded, str):
        raise Malformed("The report or its signature is missing.")
    try:
        signature = base64.b64decode(encoded, validate=True)
    except ValueError:  # binascii.Error is one; so is what is not ASCII
        raise Malformed("The report's signature is not base64.") from None
    try:
        verify(key, signature, CONTEXT + text.encode())
    except BadSignature:
        raise BadSignature("The report was not signed with the certificate's key.") from None
    content = strict_json.loads(text.encode())
    device_id = content.get("device_id") if isinstance(content, dict) else None
    if not isinstance(device_id, str):
        raise Malformed("The report does not name its device.")
    return SignedReport(text, signature, device_id)
