"""Reports of devices: what is taken, and that no other octets are."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ed448

from fleet.wire.device_report import REPORT_SIZE_MAX, decode_report, sign_report
from fleet.wire.errors import BadSignature, Malformed, TooLarge, Unsupported, WireError
from fleet.wire.key_types import OF_DEVICES
from fleet.wire.keys import generate_key

KEY = generate_key("EC-P256")
REPORT = {"device_id": "cam-1", "note": "é"}
DATA = sign_report(REPORT, KEY)


@pytest.mark.parametrize("key_type", OF_DEVICES)
def test_each_key_type_signs(key_type: str) -> None:
    key = generate_key(key_type)
    signed = decode_report(sign_report(REPORT, key), key.public_key())
    assert (json.loads(signed.text), signed.device_id) == (REPORT, "cam-1")
    with pytest.raises(WireError):
        decode_report(DATA, generate_key(key_type).public_key())


def test_a_report_cut_anywhere_is_refused() -> None:
    for size in range(len(DATA)):
        with pytest.raises(Malformed):
            decode_report(DATA[:size], KEY.public_key())


def test_a_text_or_signature_changed_anywhere_is_refused() -> None:
    tree = json.loads(DATA)
    text = tree["report"]
    for place in range(len(text)):
        changed = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
        with pytest.raises(BadSignature):
            decode_report(json.dumps(tree | {"report": changed}).encode(), KEY.public_key())
    with pytest.raises(BadSignature):
        decode_report(json.dumps(tree | {"signature": ""}).encode(), KEY.public_key())


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"{}",
        b'{"report": "{}"}',
        b'{"report": {}, "signature": ""}',
        b'{"report": "{}", "signature": "\xc3\xa9"}',
    ],
)
def test_what_is_no_report_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_report(data, KEY.public_key())


def test_a_report_names_its_device_and_is_bounded() -> None:
    with pytest.raises(Malformed):
        decode_report(sign_report({"note": ""}, KEY), KEY.public_key())
    with pytest.raises(TooLarge):
        sign_report({"note": "x" * REPORT_SIZE_MAX}, KEY)
    with pytest.raises(TooLarge):
        decode_report(b" " * REPORT_SIZE_MAX + DATA, KEY.public_key())
    with pytest.raises(Unsupported):
        sign_report(REPORT, ed448.Ed448PrivateKey.generate())
