"""PROTOCOL.md says what the code does: its vectors, limits, codes and kinds are read from the page and held to it."""

import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

import fleet.wire.serial
from fleet.wire.errors import BadSignature
from fleet.wire.serial import frames, messages, possession
from fleet.wire.serial.dialogue import station
from fleet.wire.serial.dialogue.device import DeviceDialogue
from fleet.wire.serial.dialogue.events import Timing
from fleet.wire.serial.field_types import Bool, Bytes, FieldType, ListOf, OneOf, Text, Uint
from fleet.wire.serial.frames import FrameReader, encode_frame
from fleet.wire.serial.messages import FailureCode, decode, encode
from fleet.wire.serial.vectors import CHALLENGE, MESSAGES, POSSESSION, REFUSED, SESSION, SIGNED
from tests.wire.serial_line import MemoryBoard

PAGE = (Path(fleet.wire.serial.__file__).parent / "PROTOCOL.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The rows of the table whose heading begins so."""
    body = PAGE.partition(f"\n| {heading} |")[2].split("\n\n")[0]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in body.splitlines()[2:]]


def test_each_message_both_ways() -> None:
    rows = table("message")
    assert [row[0] for row in rows] == [vector.name for vector in MESSAGES]
    for (_, payload, frame), vector in zip(rows, MESSAGES, strict=True):
        assert decode(bytes.fromhex(payload)) == vector.message
        assert encode(vector.message).hex() == payload
        assert encode_frame(bytes.fromhex(payload)).hex() == frame
        assert FrameReader().feed(bytes.fromhex(frame)) == [bytes.fromhex(payload)]


def test_there_is_a_vector_for_each_kind() -> None:
    assert {type(vector.message.body) for vector in MESSAGES} == set(messages.BODIES.values())


@pytest.mark.parametrize(("name", "octets", "answer"), table("what | octets | answer"))
def test_each_refusal(name: str, octets: str, answer: str) -> None:
    data = bytes.fromhex(octets)
    device = DeviceDialogue(MemoryBoard())
    if answer == "frame":
        assert FrameReader().feed(data) == []
        assert device.feed(data) == b""
        return
    answers = FrameReader().feed(device.feed(encode_frame(data)))
    if answer == "silence":
        assert answers == []
        return
    body = decode(answers[0]).body
    assert isinstance(body, messages.Failed)
    assert FailureCode(body.code).name == answer


def test_the_refusals_are_those_of_the_code() -> None:
    assert table("what | octets | answer") == [[r.name, r.octets.hex(), r.answer] for r in REFUSED]


def test_possession() -> None:
    rows = dict(table("possession"))
    signed = bytes.fromhex(rows.pop("signed"))
    assert signed == SIGNED == possession.signed_octets(SESSION, CHALLENGE)
    values = [bytes.fromhex(value) for value in rows.values()]
    assert values[0::2] == [sample.private_key for sample in POSSESSION]
    assert values[1::2] == [sample.signature for sample in POSSESSION]
    ed_key = ed25519.Ed25519PrivateKey.from_private_bytes(values[0])
    ec_key = ec.derive_private_key(int.from_bytes(values[2]), ec.SECP256R1())
    assert possession.sign(ed_key, signed) == values[1]
    assert ec_key.sign(signed, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)) == values[3]
    keys: list[PublicKeyTypes] = [ed_key.public_key(), ec_key.public_key()]
    for key, signature in zip(keys, values[1::2], strict=True):
        possession.verify(key, signature, signed)
        with pytest.raises(BadSignature):
            possession.verify(key, signature, signed[:-1] + b"\x00")


def test_the_limits_are_those_of_the_code() -> None:
    rows = table("name | value |")
    assert len(rows) == 13
    for name, value, _ in rows:
        if name.isupper():
            holder = next(module for module in (frames, messages, station) if hasattr(module, name))
            assert getattr(holder, name) == int(value), name
        else:
            assert getattr(Timing(), name) == int(value), name


def test_the_codes_are_those_of_the_code() -> None:
    assert [(int(code), name) for code, name, _ in table("code")] == [(code.value, code.name) for code in FailureCode]


def cddl(field_type: FieldType) -> str:
    match field_type:
        case Uint(maximum=2, minimum=1):
            return "blob"
        case Text(maximum=64, minimum=1):
            return "name"
        case Uint(maximum=maximum, minimum=minimum):
            return f"{minimum}..{maximum}"
        case Bool():
            return "bool"
        case Bytes(maximum=maximum, minimum=minimum):
            return f"bstr .size {maximum}" if minimum == maximum else f"bstr .size ({minimum}..{maximum})"
        case Text(maximum=maximum, minimum=minimum):
            return f"tstr .size ({minimum}..{maximum})"
        case OneOf(choices=choices):
            return " / ".join(f'"{choice}"' for choice in choices)
        case ListOf(item=Uint() as item, maximum=maximum):
            return f"[1*{maximum} ({cddl(item)})]"
        case ListOf(item=item, maximum=maximum):
            return f"[1*{maximum} {cddl(item)}]"
    raise AssertionError(field_type)


def test_the_kinds_are_those_of_the_code() -> None:
    rules = PAGE.partition("; kind ")[2].partition("```")[0]
    entries = re.findall(r"^([a-z-]+) +=[^;]*?\{(.*?)\}\s*;\s+(\d+)\b", rules, re.MULTILINE | re.DOTALL)
    assert len(entries) == len(messages.BODIES)
    for name, fields, kind in entries:
        body = messages.BODIES[int(kind)]
        assert "".join(part.capitalize() for part in name.split("-")) == body.__name__
        expected = ", ".join(
            f"{number}: {cddl(field_type)}" for number, field_type in enumerate(body.FIELD_TYPES, start=1)
        )
        assert " ".join(fields.split()).replace("sha256", "bstr .size 32") == expected, name


def test_the_signed_octets_are_counted_right() -> None:
    assert f"({len(SIGNED)} octets)" in PAGE
    assert possession.CONTEXT == b"fleet-serial-possession-v1\x00"
    assert f"Session `{SESSION.hex()}`" in PAGE
