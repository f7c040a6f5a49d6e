"""A program's end of the socket: the agent's lines, however they are cut."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from device_agent.apps import agent
from device_agent.apps.control import HEARD_SIZE_MAX, SOCKET_NAME, Conversation
from device_agent.errors import NotRunning, TimedOut

LINES = (
    {"event": "message", "topic": "a\u00e9", "payload": "aGk=", "qos": 0, "retain": False},
    {"event": "new in some later version"},
    {"ok": True, "id": 7, "device_id": "cam-7"},
)
STREAM = b"".join(json.dumps(line).encode() + b"\n" for line in LINES)


@contextmanager
def agent_that_says(home: Path, *pieces: bytes) -> Iterator[None]:
    """To each of its clients, and then hangs up."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / SOCKET_NAME))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    for piece in pieces:
                        try:
                            connection.sendall(piece)
                        except OSError:
                            break

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    (home / SOCKET_NAME).unlink()


def test_lines_are_heard_however_they_are_cut(tmp_path: Path) -> None:
    for cut in range(len(STREAM) + 1):
        with agent_that_says(tmp_path, STREAM[:cut], STREAM[cut:]), Conversation(tmp_path) as conversation:
            assert tuple(conversation.hear(20) for _ in LINES) == LINES
            with pytest.raises(NotRunning):
                conversation.hear(20)


@pytest.mark.parametrize("said", [b"", b'{"ok"', b"x" * (HEARD_SIZE_MAX + 70_000), b"\xff\n", b"[]\n"])
def test_what_ends_in_a_line_or_never_ends_it_or_says_none_is_no_agent(tmp_path: Path, said: bytes) -> None:
    with agent_that_says(tmp_path, said), Conversation(tmp_path) as conversation, pytest.raises(NotRunning):
        conversation.hear(20)


@pytest.mark.parametrize("said", [b"\xff\n", b"[]\n", b"7\n", b'{"event": "message"}\n', b"[" * 9000 + b"\n", b"{}\n"])
async def test_the_api_gives_up_what_is_no_agent(tmp_path: Path, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "_ANSWER_SECONDS", 0.3)
    with agent_that_says(tmp_path, said), pytest.raises(TimeoutError):
        async with agent.Agent(tmp_path):
            pass


async def test_the_api_outside_of_its_block_says_so_at_once(tmp_path: Path) -> None:
    program = agent.Agent(tmp_path)
    for call in (program.publish("t", b""), program.wait_connected(), anext(program.subscribe("t"))):
        with pytest.raises(RuntimeError, match="async with"):
            await call


def test_the_package_has_the_api_and_its_errors() -> None:
    import device_agent
    from device_agent import errors

    assert all(getattr(device_agent, name) for name in device_agent.__all__)
    assert device_agent.AgentError is errors.AgentError


async def test_what_is_not_answered_in_time_says_what_is_full(tmp_path: Path) -> None:
    """The agent says who it is, then reads one message, and no more."""
    sent = json.dumps({"do": "send", "topic": "t", "payload": "", "qos": 1, "wait": True, "id": 2}).encode() + b"\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b'{"ok": true, "id": 1, "device_id": "cam-7"}\n')
        assert await reader.readline() == sent
        await stopped.wait()
        writer.close()

    stopped = asyncio.Event()
    server = await asyncio.start_unix_server(serve, str(tmp_path / SOCKET_NAME))
    async with server, agent.Agent(tmp_path) as program:
        with pytest.raises(TimedOut, match=r"^The server has not acknowledged the message within 0\.3 s\.$"):
            await program.publish("t", b"", timeout=0.3)
        said = ""
        while not said.startswith("The agent's socket is full: "):  # the first ones are in the kernel's buffer
            with pytest.raises(TimedOut) as late:
                await program.publish("t", bytes(250_000), wait=False, timeout=0.3)
            said = late.value.message
        server.close()
        (tmp_path / SOCKET_NAME).unlink(missing_ok=True)
        stopped.set()
        with pytest.raises(TimedOut, match=r"^No agent has answered"):
            await program.publish("t", b"", timeout=1)
