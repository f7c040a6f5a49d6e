"""The agent's socket: requests whole, in pieces, wrong, and from somebody who never reads."""

import json
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device_agent.control import LINE_SIZE_MAX, SOCKET_NAME, ask, send
from device_agent.control_server import CLIENTS_MAX, Client, ControlServer
from device_agent.errors import AgentError, NotRunning, SendRefused


def echo(client: Client, request: dict[str, Any]) -> None:
    client.answer(said=request.get("word"))


def refuse(_: Client, __: dict[str, Any]) -> None:
    raise AgentError("No.", "Never.")


def silence(_: Client, __: dict[str, Any]) -> None:
    """Keep the client waiting."""


@pytest.fixture
def state() -> dict[str, object]:
    """The agent's answer to "status"."""
    return {}


@pytest.fixture
def home(tmp_path: Path, state: dict[str, object]) -> Iterator[Path]:
    """A home with a desk that is served in a thread."""
    home = tmp_path / "a home"
    home.mkdir()
    handlers = {"echo": echo, "refuse": refuse, "silence": silence, "send": silence}
    desk = ControlServer(home, handlers | {"status": lambda client, _: client.answer(**state)})
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            poll = select.poll()
            for descriptor, events in desk.watched().items():
                poll.register(descriptor, events)
            desk.handle(dict(poll.poll(20)))

    thread = threading.Thread(target=serve)
    thread.start()
    yield home
    over.set()
    thread.join()
    desk.close()


def connect(home: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(home / SOCKET_NAME))
    return connection


def read_line(connection: socket.socket) -> Any:
    """The next answer; None at the end."""
    data = b""
    while not data.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            return None
        data += byte
    return json.loads(data)


def test_a_question_and_its_answer(home: Path) -> None:
    assert ask(home, {"do": "echo", "word": "a\nb"}, 20) == {"ok": True, "said": "a\nb"}
    assert (home / SOCKET_NAME).stat().st_mode & 0o777 == 0o600


def test_a_refusal_has_its_words(home: Path) -> None:
    with pytest.raises(AgentError, match="No") as caught:
        ask(home, {"do": "refuse"}, 20)
    assert caught.value.advice == "Never."


def test_an_unknown_request(home: Path) -> None:
    with pytest.raises(AgentError, match="does not know"):
        ask(home, {"do": "format-disk"}, 20)


def test_nobody_answers(tmp_path: Path, home: Path) -> None:
    with pytest.raises(NotRunning):
        ask(tmp_path, {"do": "echo"}, 20)
    with pytest.raises(TimeoutError):
        ask(home, {"do": "silence"}, 0.2)


def test_byte_by_byte_and_all_at_once(home: Path) -> None:
    requests = b"".join(json.dumps({"do": "echo", "word": n}).encode() + b"\n" for n in range(3))
    for size in (1, len(requests)):
        with connect(home) as connection:
            for start in range(0, len(requests), size):
                connection.sendall(requests[start : start + size])
            assert [read_line(connection)["said"] for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("line", [b"hello\n", b"[]\n", b'"x"\n', b"\xff\n", b"\n", b"[" * 100_000 + b"\n"])
def test_what_is_no_request_ends_the_conversation(home: Path, line: bytes) -> None:
    with connect(home) as connection:
        connection.sendall(line)
        assert read_line(connection)["ok"] is False
        assert read_line(connection) is None
    assert ask(home, {"do": "echo"}, 20)["ok"]


def test_a_line_without_end(home: Path) -> None:
    with connect(home) as connection:
        try:
            connection.sendall(b"x" * (LINE_SIZE_MAX + 100_000))
            answer = read_line(connection)
        except OSError:
            answer = None  # it hung up while we were still talking
        assert answer is None or answer["ok"] is False
    assert ask(home, {"do": "echo"}, 20)["ok"]


def test_who_never_reads_is_dropped(home: Path) -> None:
    request = json.dumps({"do": "echo", "word": "x" * 50_000}).encode() + b"\n"
    with connect(home) as connection, pytest.raises(OSError):
        for _ in range(1000):
            connection.sendall(request)
    assert ask(home, {"do": "echo"}, 20)["ok"]


def test_too_many_wait_at_the_door(home: Path) -> None:
    crowd = [connect(home) for _ in range(CLIENTS_MAX)]
    for connection in crowd:
        connection.sendall(b'{"do": "echo"}\n')
        assert read_line(connection)["ok"]
    late = connect(home)
    late.sendall(b'{"do": "echo"}\n')
    crowd[0].close()
    assert read_line(late)["ok"]
    for connection in [*crowd, late]:
        connection.close()


def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    (tmp_path / SOCKET_NAME).touch()
    desk = ControlServer(tmp_path, {})
    assert (tmp_path / SOCKET_NAME).is_socket()
    desk.close()
    assert not (tmp_path / SOCKET_NAME).exists()


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        ({"connected": False, "last_error": "the certificate is revoked."}, "the certificate is revoked. The"),
        ({"connected": False, "last_error": ""}, "the agent is not connected. The"),
        ({"connected": True, "last_error": ""}, "it has not acknowledged the message. The"),
    ],
)
def test_a_send_in_vain_says_why_and_that_it_is_queued(
    home: Path, state: dict[str, object], now: dict[str, object], reason: str
) -> None:
    state.update(now | {"waiting": 1})
    with pytest.raises(SendRefused, match="stays queued") as caught:
        send(home, {"do": "send"}, 0.1)
    assert f"did not answer in time: {reason}" in caught.value.message
    assert "status" in caught.value.advice


def test_a_send_that_is_not_queued_is_late(home: Path, state: dict[str, object]) -> None:
    state.update(waiting=0)
    with pytest.raises(TimeoutError):
        send(home, {"do": "send"}, 0.1)
