"""The C device's parsers, cut at every byte and with every bit gone wrong; its slots, with the power cut anywhere."""

import base64
import subprocess
from pathlib import Path

import pytest
from asn1crypto import x509 as asn1_x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.hazmat.primitives.serialization.pkcs7 import serialize_certificates

from tests.device_agent.embedded.building import SOURCES, harness, needed
from tests.device_agent.fleet_parts import Authority

OK, MORE, BAD, TOO_LARGE = "0123"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nRetry-After: 12\r\n\r\n"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needed()
    return harness(tmp_path_factory.mktemp("harness"))


def run(program: Path, *words: str, give: bytes = b"") -> str:
    done = subprocess.run([program, *words], input=give, capture_output=True, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (0, b""), done.stdout + done.stderr
    return done.stdout.decode().strip()


def certs_only(authority: Authority, count: int = 2) -> bytes:
    return serialize_certificates([authority.issuing, authority.root, *[authority.root] * (count - 2)], Encoding.DER)


def test_an_http_header_is_whole_at_its_empty_line(program: Path) -> None:
    assert run(program, "http", give=ANSWER + b"abcd") == MORE * len(ANSWER) + OK * 5


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", OK),
        (b"HTTP/1.1 202\r\nRetry-After: " + b"9" * 400 + b"\r\nContent-Length: 0\r\n\r\n", OK),
        (b"HTTP/1.1 503 x\r\nRetry-After: -1\r\nContent-Length: 0\r\n\r\n", OK),
        (b"HTTP/1.1 100 Continue\r\n\r\n", BAD),
        (b"HTTP/1.1 200 OK\r\n\r\n", BAD),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n", BAD),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\n", BAD),
        (b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", BAD),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n", TOO_LARGE),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 400 + b"\r\n\r\n", TOO_LARGE),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", BAD),
        (b"HTTP/1.1 200 OK\nContent-Length: 4\n\n", BAD),
        (b"HTTP/1.1 2000 OK\r\n", BAD),
        (b"HTTP/2 200\r\n", BAD),
        (b"\r\n", BAD),
        (b"SSH-2.0-x\r\n", BAD),
    ],
)
def test_http_answers(program: Path, given: bytes, status: str) -> None:
    assert run(program, "http", give=given)[-1] == status


def test_base64_is_whole_at_every_fourth_letter(program: Path) -> None:
    text = base64.b64encode(bytes(range(60)))
    assert run(program, "base64", give=text) == (OK + BAD * 3) * 20 + OK


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (b"", OK),
        (b"YQ==\r\n", OK),
        (b" Y\tWI\n=\r\n", OK),
        (b"YQ=", BAD),
        (b"YR==", BAD),
        (b"YWJ=", BAD),
        (b"Y===", BAD),
        (b"====", BAD),
        (b"YQ==YQ==", BAD),
        (b"Y=Q=", BAD),
        (b"Y-_=", BAD),
        (b"YW\0J", BAD),
    ],
)
def test_base64(program: Path, given: bytes, status: str) -> None:
    assert run(program, "base64", give=given)[-1] == status


def test_certificates_are_read_whole_or_not_at_all(program: Path, authority: Authority) -> None:
    given = certs_only(authority)
    assert run(program, "certs", give=given) == BAD * len(given) + OK
    assert run(program, "certs", give=given + b"\0")[-1] == BAD


@pytest.mark.parametrize(("count", "status"), [(16, OK), (17, TOO_LARGE)])
def test_certificates_are_counted(program: Path, authority: Authority, count: int, status: str) -> None:
    assert run(program, "certs", give=certs_only(authority, count))[-1] == status


def test_no_certificate_is_none(program: Path) -> None:
    empty = bytes.fromhex("302306092a864886f70d010702a0163014020101310030 0b06092a864886f70d010701a0003100")
    assert run(program, "certs", give=empty)[-1] == BAD


def test_extensions_of_a_certificate(program: Path, authority: Authority) -> None:
    certificate = asn1_x509.Certificate.load(authority.server.public_bytes(Encoding.DER))
    given = certificate["tbs_certificate"]["extensions"].untag().dump()
    assert run(program, "extensions", give=given) == OK + BAD * (len(given) - 1) + OK


@pytest.mark.parametrize(
    "packet",
    [
        "20020000",
        "20020105",
        "40020007",
        "9003000701",
        "9003000780",
        "d000",
        "30080003612f6278797a",
        "320a0003612f620007787978",
    ],
)
def test_a_packet_is_whole_at_its_last_byte(program: Path, packet: str) -> None:
    given = bytes.fromhex(packet)
    said = run(program, "mqtt", give=given)
    assert said in (MORE * len(given) + OK, MORE * len(given) + BAD)
    assert said[-1] == (BAD if packet == "20020105" else OK)  # [MQTT-3.2.2-4]
    assert run(program, "mqtt", give=given + b"\x20")[-1] == said[-1]


def test_a_large_message_is_told_by_its_topic_and_id(program: Path) -> None:
    given = bytes.fromhex("32ffff7f0003612f620007") + bytes(20)
    assert run(program, "mqtt", give=given) == MORE * 11 + TOO_LARGE * 21


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        ("3003000161", "QoS 0, whole"),
        ("34050001610007", "QoS 2"),
        ("36050001610007", "QoS 3"),
        ("3803000161", "DUP on QoS 0"),
        ("32050001610000", "id 0"),
        ("30020000", "empty topic"),
        ("300300012b", "a wildcard"),
        ("3003000100", "NUL in the topic"),
        ("3003000261", "a topic beyond the packet"),
        ("30ffffff7fffff", "a topic beyond every limit"),
        ("30ffffffff01", "five bytes of length"),
        ("21020000", "flags"),
        ("2003000000", "CONNACK of three"),
        ("20020200", "acknowledge flags"),
        ("40020000", "PUBACK of nothing"),
        ("9004000701", "two return codes"),
        ("9003000702", "QoS 2 granted"),
        ("d00100", "PINGRESP with more"),
        ("c000", "what clients send"),
        ("0000", "reserved"),
        ("f000", "reserved"),
        ("b0020007", "UNSUBACK, never asked for"),
    ],
)
def test_what_no_server_may_send(program: Path, packet: str, why: str) -> None:
    assert run(program, "mqtt", give=bytes.fromhex(packet))[-1] == (OK if "whole" in why else BAD)


@pytest.mark.long
def test_what_parsers_make_of_half_a_million_changed_inputs_each(program: Path, authority: Authority) -> None:
    """No read beyond the input, and nothing given that lies outside of it."""
    certificate = asn1_x509.Certificate.load(authority.server.public_bytes(Encoding.DER))
    seeds = {
        "http": ANSWER + b"abcd",
        "base64": base64.b64encode(bytes(range(60))),
        "certs": certs_only(authority),
        "extensions": certificate["tbs_certificate"]["extensions"].untag().dump(),
        "mqtt": bytes.fromhex("320a0003612f620007787978"),
    }
    for kind, seed in seeds.items():
        taken, total = (
            int(word) for word in run(program, "fuzz", kind, "500000", give=seed).split() if word.isdecimal()
        )
        assert 0 < taken < total == 500_000, kind


def test_power_cut_in_any_change_of_flash(program: Path) -> None:
    """Always a whole pair, no proven one lost, and not one certificate more than without a cut."""
    changes, states = (int(word) for word in run(program, "slots").split() if word.isdecimal())
    assert changes > 50
    assert states > 2500


@pytest.mark.long
def test_power_cut_again_while_it_recovers(program: Path) -> None:
    _, states = (int(word) for word in run(program, "slots", "again").split() if word.isdecimal())
    assert states > 20_000


def test_flash_that_fails_once_in_any_call(program: Path) -> None:
    """A slot that could not be read is not written over, and what was written in part is done again."""
    assert int(run(program, "faults").split()[0]) > 3500


@pytest.mark.long
def test_flash_that_fails_once_after_a_power_cut(program: Path) -> None:
    assert int(run(program, "faults", "cut").split()[0]) > 100_000


def test_no_file_is_too_long_and_none_allocates() -> None:
    for file in (*SOURCES.rglob("*.c"), *SOURCES.rglob("*.h")):
        text = file.read_text("utf-8")
        assert text.count("\n") <= 400, file
        assert not any(f"{name}(" in text for name in ("malloc", "calloc", "realloc", "strdup", "alloca")), file
