"""`fleet cert inspect`: what it shows, what it hides, and how it fails."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from fleet.cli.cert import cert
from fleet.wire.encodings.bundle import Bundle, Form
from fleet.wire.encodings.writing import write
from tests.odd_certificates import ECDSA_WITH_NULL
from tests.odd_certificates import certificate as odd_certificate
from tests.wire.encodings.material import (
    ALT_NAMES,
    BUNDLE,
    CHAIN_PEM,
    KEY,
    KEY_PEM,
    LEAF,
    PASSWORD,
    REQUEST,
    REVOCATION_LIST,
)


def inspect(*arguments: str | Path, data: bytes | None = None) -> Result:
    return CliRunner().invoke(cert, ["inspect", *map(str, arguments)], input=data)


def facts(*arguments: str | Path, data: bytes | None = None) -> dict[str, Any]:
    result = inspect(*arguments, "-o", "json", data=data)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_bytes(PASSWORD + b"\r\nanother line\n")
    return path


@pytest.fixture
def pkcs12(tmp_path: Path) -> Path:
    path = tmp_path / "pump.p12"
    path.write_bytes(write(BUNDLE, Form.P12, PASSWORD))
    return path


def test_a_certificate_in_full() -> None:
    found = facts("-", data=LEAF.public_bytes(Encoding.DER))
    assert found["content"] == "DER certificate"
    (certificate,) = found["certificates"]
    assert certificate["subject"] == "CN=pump-7"
    assert certificate["alt_names"] == list(ALT_NAMES)
    assert certificate["issuer"] == "CN=Issuing"
    assert certificate["serial"] == f"{LEAF.serial_number:x}"
    assert certificate["validity"] == "expires in 30 days"
    assert 29 * 86_400 < certificate["expires_in_seconds"] < 31 * 86_400
    assert certificate["key_type"] == "EC-P256"
    assert certificate["ca"] is False
    assert certificate["extended_key_usage"] == ["clientAuth"]
    assert certificate["sha256"] == LEAF.fingerprint(hashes.SHA256()).hex()
    assert certificate["problems"] == []
    assert found["private_key"] is None


def test_a_key_and_its_certificate() -> None:
    found = facts("-", data=CHAIN_PEM + KEY_PEM)
    assert len(found["certificates"]) == 3
    assert found["private_key"]["matches_certificate"] == 1
    assert found["private_key"]["key_sha256"] == found["certificates"][0]["key_sha256"]


def test_a_key_that_belongs_to_none() -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    data = CHAIN_PEM + write(Bundle(private_key=stranger), Form.PEM)
    assert facts("-", data=data)["private_key"]["matches_certificate"] is None
    assert "belongs to none" in inspect("-", data=data).stdout


@pytest.mark.parametrize("output", ["table", "json"])
def test_key_material_is_never_shown(output: str) -> None:
    shown = inspect("-", "-o", output, data=CHAIN_PEM + KEY_PEM).stdout
    number = KEY.private_numbers().private_value
    assert f"{number:x}" not in shown
    assert str(number) not in shown
    assert "BEGIN" not in shown


def test_the_table_for_people() -> None:
    lines = inspect("-", data=CHAIN_PEM + KEY_PEM).stdout.splitlines()
    assert lines[0] == "-: PEM"
    assert "Certificate 1 of 3" in lines
    assert "subject:            CN=pump-7" in lines
    assert any("HW:1.3.6.1.4.1.4128.1:0a0b0c" in line for line in lines)
    assert "Private key: EC-P256, belongs to certificate 1" in lines


def test_pkcs12_by_password_file(pkcs12: Path, password_file: Path) -> None:
    found = facts(pkcs12, "--password-file", password_file)
    assert found["content"] == "PKCS#12"
    assert found["private_key"]["matches_certificate"] == 1


def test_pkcs12_by_environment(pkcs12: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUMP_PASSWORD", PASSWORD.decode())
    assert facts(pkcs12, "--password-env", "PUMP_PASSWORD")["private_key"] is not None


def test_pkcs12_without_a_password_and_a_terminal(pkcs12: Path) -> None:
    result = inspect(pkcs12)
    assert result.exit_code == 1
    assert "--password-file" in result.stderr


def test_a_wrong_password(pkcs12: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("no")
    result = inspect(pkcs12, "--password-file", wrong)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: reading '{pkcs12}': the password does not open")
    assert result.stderr.endswith("Check the password.\n")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (("--password-env", "NOT_SET_ANYWHERE"), 1, "NOT_SET_ANYWHERE"),
        (("--password-file", "nowhere"), 1, "nowhere"),
        (("--password-file", "/dev/null"), 1, "empty"),
        (("--password-file", "/dev/zero"), 1, "longer"),
        (("--password-env", "A", "--password-file", "b"), 2, "not both"),
        (("--password", "secret"), 2, "No such option"),
    ],
)
def test_where_passwords_come_from(pkcs12: Path, arguments: tuple[str, ...], exit_code: int, words: str) -> None:
    result = inspect(pkcs12, *arguments)
    assert result.exit_code == exit_code
    assert words in result.stderr


def test_a_locked_key_is_told() -> None:
    locked = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSWORD))
    result = inspect("-", data=CHAIN_PEM + locked)
    assert result.exit_code == 0
    assert "encrypted" in result.stdout


def test_requests_and_lists() -> None:
    found = facts("-", data=REQUEST.public_bytes(Encoding.PEM) + REVOCATION_LIST.public_bytes(Encoding.PEM))
    (request,) = found["requests"]
    assert request["accepted"] is True
    assert request["alt_names"] == list(ALT_NAMES)
    (listed,) = found["revocation_lists"]
    assert (listed["issuer"], listed["number"], listed["entries"], listed["state"]) == ("CN=Issuing", 4, 0, "current")


def test_a_request_that_would_be_refused_says_why() -> None:
    damaged = bytearray(REQUEST.public_bytes(Encoding.DER))
    damaged[-1] ^= 1
    (request,) = facts("-", data=bytes(damaged))["requests"]
    assert request["accepted"] is False
    assert "does not verify" in request["problems"][0]


def test_a_weak_key_is_told() -> None:
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 - the very point
    described = facts("-", data=write(Bundle(private_key=key), Form.PEM))["private_key"]["key_type"]
    assert described.startswith("RSA-1024 (refused here: ")
    assert facts("-", data=write(Bundle(private_key=key), Form.PEM))["private_key"]["matches_certificate"] is None


def test_keys_held_elsewhere_are_named() -> None:
    data = b"-----BEGIN TSS2 PRIVATE KEY-----\nMAA=\n-----END TSS2 PRIVATE KEY-----\n" + CHAIN_PEM
    assert "Also there: a key held by a TPM" in inspect("-", data=data).stdout


def test_a_damaged_name_is_a_problem_and_not_a_crash() -> None:
    damaged = LEAF.public_bytes(Encoding.DER).replace(b"Issuing", b"Issu\xffng")
    (certificate,) = facts("-", data=damaged)["certificates"]
    assert certificate["issuer"] == "?"
    assert certificate["problems"]
    assert "problems:" in inspect("-", data=damaged).stdout


def test_a_serial_number_that_is_not_positive_is_a_problem() -> None:
    data = odd_certificate(ec.generate_private_key(ec.SECP256R1()), serial=-5)
    (certificate,) = facts("-", data=data)["certificates"]
    assert certificate["serial"] == "-5"
    assert certificate["problems"] == ["The serial number is not positive, which RFC 5280 forbids."]
    assert "Parsed a serial" not in inspect("-", data=data).output


def test_a_certificate_that_the_library_cannot_load_is_shown() -> None:
    data = odd_certificate(ec.generate_private_key(ec.SECP256R1()), algorithm=ECDSA_WITH_NULL)
    (certificate,) = facts("-", data=data)["certificates"]
    assert (certificate["subject"], certificate["serial"], certificate["key_type"]) == ("CN=Maker", "7", "EC-P256")
    assert certificate["sha256"] == hashlib.sha256(data).hexdigest()
    (problem,) = certificate["problems"]
    assert "ECDSA, has parameters" in problem


@pytest.mark.parametrize("data", [b"", b"hello", b"\x30\x82\x01\x00", CHAIN_PEM[:300]])
def test_what_cannot_be_read(data: bytes) -> None:
    result = inspect("-", data=data)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: reading '-': ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert "no such file" in inspect(tmp_path / "nowhere").stderr
    assert "is a directory" in inspect(tmp_path).stderr


def test_the_help_teaches() -> None:
    shown = inspect("--help").output
    assert "Examples:" in shown
    assert "Exit codes:" in shown
