"""A file of CAs in every form, and cut at every byte."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from device_agent.store.root_rollover import load_anchors
from fleet.ca.authority import create_root
from fleet.client.https import tls_context
from fleet.est_client.errors import BadConfig
from fleet.est_client.tls import client_context
from fleet.webhook.caller import client_context as webhook_context
from fleet.wire.armor import lines
from fleet.wire.ca_file import ca_pem
from fleet.wire.errors import WireError
from tests.tenant_fixtures import pem

NOW = datetime(2026, 5, 1, tzinfo=UTC)
ONE, OTHER = (create_root(name, NOW)[0] for name in ("One", "Other"))
DER = ONE.public_bytes(Encoding.DER)
PEM = pem(ONE, OTHER)
FORMS: dict[str, tuple[bytes, tuple[x509.Certificate, ...]]] = {
    "PEM": (PEM, (ONE, OTHER)),
    "PEM glued together": (PEM.replace(b"-----\n-----", b"----------"), (ONE, OTHER)),
    "PEM with words": (b"# the CAs\nOne\n" + PEM, (ONE, OTHER)),
    "PEM with a byte order mark": (b"\xef\xbb\xbf" + PEM, (ONE, OTHER)),
    "PEM in UTF-16": (PEM.decode().encode("utf-16"), (ONE, OTHER)),
    "DER": (DER, (ONE,)),
    "base64": (lines(DER), (ONE,)),
    "PKCS#7 in DER": (pkcs7.serialize_certificates([ONE, OTHER], Encoding.DER), (ONE, OTHER)),
    "PKCS#7 in PEM": (pkcs7.serialize_certificates([ONE, OTHER], Encoding.PEM), (ONE, OTHER)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_trusted_wherever_a_ca_is_taken(form: str, tmp_path: Path) -> None:
    data, held = FORMS[form]
    file = tmp_path / "ca"
    file.write_bytes(data)
    wanted = {each.public_bytes(Encoding.DER) for each in held}
    for context in (client_context(file), webhook_context(file)):
        assert set(context.get_ca_certs(binary_form=True)) == wanted
    assert {each.public_bytes(Encoding.DER) for each in load_anchors(file)} == wanted


@pytest.mark.parametrize("form", ["DER", "PKCS#7 in DER", "PKCS#7 in PEM", "base64"])
def test_a_file_cut_anywhere_is_refused(form: str) -> None:
    data, _ = FORMS[form]
    for cut in range(0, len(data) - 1, 1 if form == "DER" else 7):
        with pytest.raises(WireError):
            ca_pem(data[:cut])


@pytest.mark.parametrize("data", [b"", b"text", b"\0" * 9, pkcs7.serialize_certificates([ONE], Encoding.DER)[:-9]])
def test_what_holds_no_certificate_is_told_in_a_sentence(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "ca"
    file.write_bytes(data)
    with pytest.raises(BadConfig, match=r"The CA file .* cannot be used: it holds no PEM certificate\."):
        client_context(file)
    with pytest.raises(BadConfig):
        load_anchors(file)


def test_without_a_file_the_systems_roots_are_trusted(tmp_path: Path) -> None:
    assert webhook_context(None).verify_mode is ssl.CERT_REQUIRED
    with pytest.raises(OSError, match="missing"):
        tls_context(tmp_path / "missing", None, None)
