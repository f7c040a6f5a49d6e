"""`firmware-tools`: vectors, and frames in both directions, as a firmware author would use them."""

import json

import pytest
from click.testing import CliRunner, Result

from firmware_tools.cli import main
from fleet.wire.serial import messages as m
from fleet.wire.serial.frames import encode_frame
from fleet.wire.serial.messages import BODIES, Message, encode
from fleet.wire.serial.vectors import MESSAGES


def invoke(*words: str, give: str | bytes = "") -> Result:
    return CliRunner().invoke(main, words, input=give)


def test_vectors_are_complete() -> None:
    tree = json.loads(invoke("vectors").stdout)
    assert {each["kind"] for each in tree["messages"]} == set(BODIES)
    assert [each["frame"] for each in tree["messages"]] == [vector.frame.hex() for vector in MESSAGES]
    assert all({"name", "octets", "answer"} == set(each) for each in tree["refused"])
    assert len(tree["possession"]["samples"]) == 2


def test_each_vector_through_json_and_back() -> None:
    for each in json.loads(invoke("vectors").stdout)["messages"]:
        message = {key: each[key] for key in ("message", "session", "step", "fields")}
        assert invoke("frame", "encode", give=json.dumps(message)).stdout.strip() == each["frame"]
        decoded = invoke("frame", "decode", give=each["frame"])
        assert decoded.exit_code == 0
        assert json.loads(decoded.stdout) == message


def test_a_log_from_the_line() -> None:
    finish = encode_frame(encode(Message(b"sessiona", 7, m.Finish())))
    stream = b"boot\r\n" + finish + finish[:-2] + b"x\x00" + finish
    done = invoke("frame", "decode", "--binary", give=stream)
    assert [json.loads(line)["message"] for line in done.stdout.splitlines()] == ["Finish", "Finish"]
    assert "2 messages, 0 that cannot be decoded; dropped: noise 1, bad crc 1, oversized 0" in done.stderr
    assert done.exit_code == 0
    spaced = finish.hex(" ")
    done = invoke("frame", "decode", give=f"{spaced[:20]}\n{spaced[20:]}\n")
    assert done.exit_code == 0


def test_a_message_that_cannot_be_read_is_shown_with_the_reason() -> None:
    done = invoke("frame", "decode", "--binary", give=encode_frame(b"\x85\x02\x08\x48sessiona\x00\xa0"))
    assert json.loads(done.stdout)["error"].startswith("Version 2")
    assert done.exit_code == 1


def test_octets_for_a_port() -> None:
    message = '{"message": "Finish", "session": "73657373696f6e61", "step": 7, "fields": {}}'
    done = invoke("frame", "encode", "--binary", give=message)
    assert done.stdout_bytes == encode_frame(encode(Message(b"sessiona", 7, m.Finish())))


@pytest.mark.parametrize("give", ["zz", "0", "—", ""])
def test_no_hex_or_nothing_at_all(give: str) -> None:
    assert invoke("frame", "decode", give=give).exit_code == 1


FINISH = {"message": "Finish", "session": "73657373696f6e61", "step": 7, "fields": {}}
HELLO = FINISH | {"message": "Hello", "fields": {"versions": [1], "station": "s"}}
PROVE = FINISH | {"message": "Prove", "fields": {"challenge": "00" * 32}}


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ([], "has the keys"),
        (FINISH | {"more": 1}, "has the keys"),
        (FINISH | {"fields": []}, "has the keys"),
        (FINISH | {"message": "Dance"}, "no message 'Dance'"),
        (FINISH | {"fields": {"x": 1}}, "has the fields: none"),
        (FINISH | {"session": "xyz"}, "session is not hex"),
        (FINISH | {"session": 7}, "session is not hex"),
        (FINISH | {"session": "00"}, "session is under 8 octets"),
        (FINISH | {"step": -1}, "step is not between"),
        (FINISH | {"step": "7"}, "step is not an unsigned integer"),
        (HELLO | {"fields": {"versions": [], "station": "s"}}, "versions is not a list"),
        (HELLO | {"fields": {"versions": 1, "station": "s"}}, "versions is not a list"),
        (HELLO | {"fields": {"versions": [1]}}, "has the fields: versions, station"),
        (PROVE | {"fields": {"challenge": "00"}}, "challenge is under 32"),
        (PROVE | {"fields": {"challenge": None}}, "challenge is not hex"),
    ],
)
def test_json_that_is_no_message(tree: object, says: str) -> None:
    done = invoke("frame", "encode", give=json.dumps(tree))
    assert done.exit_code == 1
    assert says in done.stderr


def test_no_json_at_all() -> None:
    assert invoke("frame", "encode", give="{").exit_code == 1
