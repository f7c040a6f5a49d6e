"""How much of the outbox one user may fill."""

import base64
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from device_agent.apps.access import Access
from device_agent.apps.control_server import Client, Exchange, Peer
from device_agent.apps.inbound import Inbound
from device_agent.apps.message_handlers import MessageHandlers
from device_agent.config.apps import AppRule, AppsConfig
from device_agent.config.spool import SpoolConfig
from device_agent.errors import Denied, SendRefused, SubscriptionRefused
from device_agent.spool.outbox import PAYLOAD_SIZE_MAX, Outbox
from tests.device_agent.spool_parts import MEBIBYTE, Kept

LISTED, ALSO_LISTED, STRANGER = 4001, 4002, 4003


class Agent:
    def __init__(self, home: Path) -> None:
        self.device_id = "cam-7"
        self.connection: Any = SimpleNamespace(is_up=False)
        self.outbox = Outbox(64)
        self.outbox_messages_max = 64
        self.inbound = Inbound(self.connection, lambda: 0.0)
        self.stopping = False
        self.home = home
        self.monotonic = lambda: 0.0


@pytest.fixture
def clients() -> Iterator[dict[int, Client]]:
    """One of each user, the agent's own being 0."""
    pairs = [socket.socketpair() for _ in range(4)]
    found = {}
    for uid, (ours, _) in zip((0, LISTED, ALSO_LISTED, STRANGER), pairs, strict=True):
        ours.setblocking(False)
        found[uid] = Client(ours)
        found[uid].peer = Peer(uid, uid)
    yield found
    for pair in pairs:
        for each in pair:
            each.close()


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_user_that_floods_with_large_messages_leaves_room_for_others(
    clients: dict[int, Client], tmp_path: Path, kind: str
) -> None:
    agent = Agent(tmp_path)
    kept = Kept(tmp_path, settings=SpoolConfig(enabled=kind == "file", bytes_max=4 * MEBIBYTE))
    agent.outbox = kept.outbox
    rules = tuple(AppRule(uid, None, ("up/#",)) for uid in (LISTED, ALSO_LISTED))
    handlers = MessageHandlers(agent, Access(AppsConfig(clients=rules), "cam-7"))
    request = {"do": "send", "topic": "up/x", "payload": base64.b64encode(b"x" * (PAYLOAD_SIZE_MAX - 500)).decode()}

    def fills(uid: int) -> int:
        before = len(agent.outbox)
        with pytest.raises(SendRefused):
            while True:
                handlers.send(Exchange(clients[uid], request), request)
        return len(agent.outbox) - before

    assert [fills(LISTED), fills(ALSO_LISTED), fills(LISTED)] == [8, 4, 0]
    kept.spool.commit()
    first = agent.outbox.next_to_send(1)
    assert first is not None
    agent.outbox.sent(first, 1)
    agent.outbox.acknowledged(1)
    assert fills(LISTED) == 0  # of a share of 6, now that 12 are left
    assert fills(0) == 16 - 7 - 4  # the owner may fill it


def test_a_user_that_floods_leaves_room_for_others(clients: dict[int, Client], tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    rules = tuple(AppRule(uid, None, ("up/#",)) for uid in (LISTED, ALSO_LISTED))
    handlers = MessageHandlers(agent, Access(AppsConfig(clients=rules), "cam-7"))

    def sends(uid: int, topic: str = "up/x") -> None:
        request = {"do": "send", "topic": topic}
        handlers.send(Exchange(clients[uid], request), request)

    def fills(uid: int) -> int:
        """How many it may send."""
        before = len(agent.outbox)
        with pytest.raises(SendRefused):
            while True:
                sends(uid)
        return len(agent.outbox) - before

    for uid, topic in ((STRANGER, "up/x"), (LISTED, "down/x")):
        with pytest.raises(Denied):
            sends(uid, topic)
    assert fills(LISTED) == 32
    assert fills(ALSO_LISTED) == 16
    for packet_id in range(1, 10):
        sent = agent.outbox.next_to_send(1)
        assert sent is not None
        agent.outbox.sent(sent, packet_id)
        agent.outbox.acknowledged(packet_id)
    assert fills(LISTED) == 1  # of a share of 24, now that 23 are left
    assert fills(0) == 64 - 24 - 16  # the owner may fill it


def test_a_response_goes_where_the_user_may_listen_or_publish(clients: dict[int, Client], tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    rules = (AppRule(LISTED, None, ("up/#",), ("down/#",)),)
    handlers = MessageHandlers(agent, Access(AppsConfig(clients=rules), "cam-7"))
    for topic in ("up/y", "down/y"):
        request = {"do": "send", "topic": "up/x", "response_topic": topic}
        handlers.send(Exchange(clients[LISTED], request), request)
    request = {"do": "send", "topic": "up/x", "response_topic": "others/y"}
    with pytest.raises(Denied, match="responses"):
        handlers.send(Exchange(clients[LISTED], request), request)
    handlers.send(Exchange(clients[0], request), request)


def test_a_shared_subscription_is_refused(clients: dict[int, Client], tmp_path: Path) -> None:
    handlers = MessageHandlers(Agent(tmp_path), Access(AppsConfig(), "cam-7"))
    request = {"do": "subscribe", "topic": "$share/group/down/#"}
    with pytest.raises(SubscriptionRefused, match="shared"):
        handlers.subscribe(Exchange(clients[0], request), request)
