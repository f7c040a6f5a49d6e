"""The agent's socket: requests whole, in pieces, wrong, and from somebody who never reads."""

import json
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from device_agent.apps import control_server
from device_agent.apps.control import LINE_SIZE_MAX, SOCKET_NAME, ask, send
from device_agent.apps.control_server import (
    CLIENTS_MAX,
    CLIENTS_OF_USER_MAX,
    OPEN_REQUESTS_MAX,
    REQUESTS_OF_TURN_MAX,
    SILENT_SECONDS_MAX,
    ControlServer,
    Exchange,
)
from device_agent.errors import AgentError, Busy, NotRunning, SendRefused
from tests.waiting import PATIENCE_SECONDS, wait_until


def echo(exchange: Exchange, request: dict[str, Any]) -> None:
    exchange.answer(said=request.get("word"))


def refuse(_: Exchange, __: dict[str, Any]) -> None:
    raise AgentError("No.", "Never.")


def silence(_: Exchange, __: dict[str, Any]) -> None:
    """Keep the client waiting."""


@contextmanager
def serve(desk: ControlServer) -> Iterator[None]:
    """Serve it in a thread."""
    over = threading.Event()

    def turn() -> None:
        while not over.is_set():
            poll = select.poll()
            for descriptor, events in desk.watched().items():
                poll.register(descriptor, events)
            desk.handle(dict(poll.poll(20)))

    thread = threading.Thread(target=turn)
    thread.start()
    yield
    over.set()
    thread.join()
    desk.close()


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
    with serve(desk):
        yield home


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
        ({"connected": False, "last_error": "the certificate is revoked."}, "the certificate is revoked. It"),
        ({"connected": False, "last_error": ""}, "the agent is not connected. It"),
        ({"connected": True, "last_error": ""}, "the server has not acknowledged it. It"),
    ],
)
def test_a_send_in_vain_says_why_and_that_it_is_queued(
    home: Path, state: dict[str, object], now: dict[str, object], reason: str
) -> None:
    state.update(now | {"waiting": 1})
    with pytest.raises(SendRefused, match="stays queued") as caught:
        send(home, {"do": "send"}, 0.1)
    assert f"The message is not delivered yet: {reason}" in caught.value.message
    assert "status" in caught.value.advice


def test_a_send_that_is_not_queued_is_late(home: Path, state: dict[str, object]) -> None:
    state.update(waiting=0)
    with pytest.raises(TimeoutError):
        send(home, {"do": "send"}, 0.1)


@pytest.mark.parametrize("identifier", [7, "a" * 64, -1, None, [1], "a" * 65, 2**53, True])
def test_an_answer_repeats_the_id_of_its_request(home: Path, identifier: object) -> None:
    with connect(home) as connection:
        connection.sendall(json.dumps({"do": "echo", "id": identifier}).encode() + b"\n")
        repeated = {"id": identifier} if identifier in (7, "a" * 64, -1) and identifier is not True else {}
        assert read_line(connection) == {"ok": True, "said": None} | repeated


def test_a_client_with_many_open_requests_is_not_read_until_some_are_answered(tmp_path: Path) -> None:
    kept: list[Exchange] = []
    desk = ControlServer(tmp_path, {"keep": lambda exchange, _: kept.append(exchange), "echo": echo})
    with serve(desk), connect(tmp_path) as connection:
        for _ in range(OPEN_REQUESTS_MAX):
            connection.sendall(b'{"do": "keep"}\n')
        wait_until(lambda: len(kept) == OPEN_REQUESTS_MAX)
        connection.sendall(b'{"do": "echo"}\n')
        assert ask(tmp_path, {"do": "echo"}, 20)["ok"]  # others are served
        assert select.select([connection], [], [], 0.1)[0] == []
        kept[0].answer(of="the first")
        assert read_line(connection)["of"] == "the first"
        assert "said" in read_line(connection)


def test_who_has_said_its_last_is_still_answered(tmp_path: Path) -> None:
    """As `socat` does at the end of its input."""
    waiting: list[Exchange] = []
    over = threading.Event()

    def later(exchange: Exchange, _: dict[str, Any]) -> None:
        waiting.append(exchange)

    def release(exchange: Exchange, _: dict[str, Any]) -> None:
        exchange.answer()
        for each in waiting:
            each.answer(said="late")

    desk = ControlServer(tmp_path, {"later": later, "release": release}, on_closed=lambda _: over.set())
    with serve(desk), connect(tmp_path) as program:
        program.sendall(b'{"do": "later", "id": 1}\n{"do": "later", "id": 2}\n')
        program.shutdown(socket.SHUT_WR)
        wait_until(lambda: any(each._ended for each in desk._clients.values()))
        assert not over.is_set()
        assert ask(tmp_path, {"do": "release"}, 20) == {"ok": True}
        assert [read_line(program) for _ in range(3)] == [
            {"ok": True, "said": "late", "id": 1},
            {"ok": True, "said": "late", "id": 2},
            None,
        ]


def test_who_has_nothing_due_or_is_gone_is_closed_at_once(tmp_path: Path) -> None:
    closed = threading.Semaphore(0)
    desk = ControlServer(tmp_path, {"silence": silence}, on_closed=lambda _: closed.release())
    with serve(desk):
        with connect(tmp_path) as program:
            program.shutdown(socket.SHUT_WR)
            assert read_line(program) is None
        assert closed.acquire(timeout=PATIENCE_SECONDS)
        with connect(tmp_path) as program:
            program.sendall(b'{"do": "silence"}\n')
        assert closed.acquire(timeout=PATIENCE_SECONDS)
        with connect(tmp_path) as program:
            program.sendall(b'{"do": "silence"}\n')
            program.shutdown(socket.SHUT_WR)
            wait_until(lambda: any(each._ended for each in desk._clients.values()))
        assert closed.acquire(timeout=PATIENCE_SECONDS)


class Door:
    """A server whose turns a test takes, and clients of any user."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.home = home
        self.uid = 0
        self.turns = 0
        self.handled: list[int] = []
        """The turn of each request."""
        self.server = ControlServer(home, {"do": self._do, "keep": silence}, monotonic=lambda: self.now)
        real = control_server.Peer
        monkeypatch.setattr(control_server, "Peer", lambda uid, gid: real(self.uid, gid))

    def _do(self, exchange: Exchange, _: object) -> None:
        self.handled.append(self.turns)
        exchange.answer()

    def enter(self, uid: int, said: bytes = b"") -> socket.socket:
        self.uid = uid
        connection = connect(self.home)
        connection.sendall(said)
        self.turn()
        return connection

    def turn(self) -> int:
        """One turn of the loop; how many descriptors were ready."""
        self.turns += 1
        poll = select.poll()
        for descriptor, events in self.server.watched().items():
            poll.register(descriptor, events)
        ready = dict(poll.poll(0))
        self.server.handle(ready)
        return len(ready)

    def is_served(self, connection: socket.socket) -> bool:
        connection.sendall(b'{"do": "do"}\n')
        while self.turn():
            pass
        return bool(read_line(connection)["ok"])


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    found = Door(tmp_path, monkeypatch)
    yield found
    found.server.close()


def test_of_the_user_with_the_most_connections_the_oldest_idle_one_gives_way(door: Door) -> None:
    crowd = {uid: [door.enter(uid) for _ in range(CLIENTS_OF_USER_MAX)] for uid in (4001, 4002, 4003, 4004)}
    assert door.is_served(crowd[4001][0])
    newcomer, owner = door.enter(4005), door.enter(0)
    assert door.is_served(newcomer)
    assert door.is_served(owner)
    assert "to be served" in read_line(crowd[4001][1])["message"]  # the oldest that has never asked for anything
    assert "to be served" in read_line(crowd[4002][0])["message"]
    assert door.is_served(crowd[4001][0])
    for each in [newcomer, owner, *(each for some in crowd.values() for each in some)]:
        each.close()


def test_users_with_one_connection_each_keep_it_and_the_owner_still_gets_in(door: Door) -> None:
    crowd = [door.enter(4000 + number) for number in range(CLIENTS_MAX)]
    late = door.enter(5000)
    assert "already" in read_line(late)["message"]
    assert door.is_served(door.enter(0))
    for each in [late, *crowd]:
        each.close()


def test_a_connection_that_never_asks_is_closed(door: Door) -> None:
    silent, half, waits = door.enter(0), door.enter(0, b'{"do"'), door.enter(0, b'{"do": "keep"}\n')
    door.turn()
    door.now = SILENT_SECONDS_MAX
    door.turn()
    for each in (silent, half):
        assert "no request" in read_line(each)["message"]
        assert read_line(each) is None
    assert door.is_served(waits)
    for each in (silent, half, waits):
        each.close()


def test_a_flood_of_requests_leaves_each_turn_to_others(door: Door) -> None:
    flood, other = door.enter(0, b'{"do": "do"}\n' * 100), door.enter(0)
    other.sendall(b'{"do": "do"}\n')
    while door.turn():
        if select.select([flood], [], [], 0)[0]:
            flood.recv(65536)
    assert read_line(other)["ok"]
    counts = [door.handled.count(turn) for turn in range(door.turns)]
    assert (len(door.handled), max(counts)) == (101, REQUESTS_OF_TURN_MAX + 1)
    flood.close()
    other.close()


def test_what_a_program_has_asked_for_counts_though_it_is_gone(door: Door) -> None:
    door.enter(0, b'{"do": "do"}\n' * 100).close()
    while door.turn():
        pass
    assert len(door.handled) == 100


def test_an_agent_whose_socket_is_full_is_running(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / SOCKET_NAME))
        listener.listen(0)
        first.connect(str(tmp_path / SOCKET_NAME))
        with pytest.raises(Busy, match="is running, but its socket is full"):
            ask(tmp_path, {"do": "status"}, 0.2)


def test_who_reads_no_answers_has_no_more_requests_open_than_it_has_sent_at_once(door: Door) -> None:
    deaf = door.enter(0)
    deaf.shutdown(socket.SHUT_RD)
    deaf.sendall(b'{"do": "do"}\n' * 100)
    while door.turn():
        pass
    assert len(door.handled) == 100
    with pytest.raises(OSError):
        for _ in range(1000):
            deaf.sendall(b'{"do": "keep"}\n' * 100)
            door.turn()
    deaf.close()
