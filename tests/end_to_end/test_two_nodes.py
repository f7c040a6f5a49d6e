"""Two `fleet serve` on one PostgreSQL: whichever node is asked, there is one fleet."""

import http.client
import json
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fleet.est_client.client import EstClient, Policy
from fleet.est_client.errors import EstRefused
from fleet.wire.mqtt.codes import V311
from tests.end_to_end.live_device import DEVICE, LiveDevice, csr_for, mqtt_answer, renewal_with
from tests.postgres_server import PASSWORD, PostgresServer, running_postgres
from tests.serving import Served, run_fleet
from tests.waiting import PATIENCE_SECONDS

SPENDER = "cam-8"


@contextmanager
def two_nodes(server: PostgresServer, folder: Path) -> Iterator[list[Served]]:
    """Two homes with the same CAs and the same database."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", PASSWORD)
        home = folder / "node 0"
        run_fleet(home, "init", str(home), "--database", server.tcp_url(server.make_database()))
        shutil.copytree(home, folder / "node 1")
        served = [Served(folder / f"node {n}", folder / f"ready {n}.json").start() for n in range(2)]
        try:
            yield served
        finally:
            for each in served:
                each.stop()


@pytest.fixture(scope="module")
def nodes(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    """For tests that stop neither, each with devices and operators of its own."""
    with two_nodes(postgres_server, tmp_path_factory.mktemp("nodes")) as served:
        yield served


@contextmanager
def session(served: Served, device: LiveDevice) -> Iterator[ssl.SSLSocket]:
    """An MQTT session of the device at this node."""
    host, port = served.address("mqtt")
    context = ssl.create_default_context(cafile=served.ca_file)
    context.load_cert_chain(*device.pair())
    name = device.name.encode()
    body = b"\x00\x04MQTT" + bytes((V311,)) + b"\x02\x00\x3c" + len(name).to_bytes(2, "big") + name
    with (
        socket.create_connection((host, port), PATIENCE_SECONDS) as raw,
        context.wrap_socket(raw, server_hostname=host) as tls,
    ):
        tls.sendall(b"\x10" + bytes((len(body),)) + body)
        assert tls.recv(4) == b"\x20\x02\x00\x00"  # CONNACK, accepted
        yield tls


def ends(tls: ssl.SSLSocket) -> bool:
    """Whether the other side ends it, as it must: waits for that."""
    try:
        return tls.recv(1) == b""
    except ConnectionError:
        return True


def shown_sessions(node: Served, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The device's session as this node has it, once `condition` holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        for found in json.loads(run_fleet(node.home, "session", "list", "-o", "json")):
            if condition(found):
                return dict(found)
        assert time.monotonic() < deadline


def test_a_revocation_or_a_kick_on_one_node_cuts_the_session_on_the_other(nodes: list[Served], tmp_path: Path) -> None:
    first, second = nodes
    device = LiveDevice(first, tmp_path)  # enrolled at the first node
    with session(second, device) as tls:
        shown = shown_sessions(first, lambda each: each["state"] == "connected")
        assert (shown["address"], shown["node"].endswith(f":{second.home}")) == ("127.0.0.1", True)
        # Each node has a broker of its own: the first leaves the message to the other.
        topic = f"devices/{DEVICE}/fleet/renew".encode()
        tls.sendall(b"\x82" + bytes((len(topic) + 5,)) + b"\0\1" + len(topic).to_bytes(2) + topic + b"\0")
        assert tls.recv(5) == b"\x90\x03\0\1\0"
        for node in nodes:
            run_fleet(node.home, "device", "notify", DEVICE, "renew")
            assert tls.recv(len(topic) + 4)[4:] == topic
        run_fleet(first.home, "session", "kick", DEVICE)
        assert ends(tls)
        assert shown_sessions(first, lambda each: each["state"] == "disconnected")["reason"] == "kicked"
    with session(second, device) as tls:
        begun = time.monotonic()
        run_fleet(first.home, "device", "revoke", DEVICE, "--reason", "lost")
        assert ends(tls)
        print(f"from the start of `fleet device revoke` to the cut: {time.monotonic() - begun:.2f} s")
    assert mqtt_answer(second, device.pair(), DEVICE) == 5  # not authorized
    assert mqtt_answer(first, device.pair(), DEVICE) == 5
    with pytest.raises(EstRefused):
        renewal_with(second, device.pair()).simplereenroll(csr_for(DEVICE))
    verified = [json.loads(run_fleet(node.home, "audit", "verify", "-o", "json")) for node in nodes]
    assert verified[0]["rows"] <= verified[1]["rows"]


def test_a_token_is_spent_once_at_whichever_node(nodes: list[Served], tmp_path: Path) -> None:
    first, second = nodes
    run_fleet(first.home, "device", "add", SPENDER, "--model", "default")
    token = run_fleet(second.home, "token", "create", "--device", SPENDER).strip()

    def enroll(node: Served) -> None:
        client = EstClient(node.est, node.ca_file, basic=(SPENDER, token), policy=Policy(patience_seconds=0))
        client.simpleenroll(csr_for(SPENDER))

    enroll(second)
    for node in nodes:
        with pytest.raises(EstRefused):
            enroll(node)
    shown = json.loads(run_fleet(first.home, "device", "show", SPENDER, "-o", "json"))
    assert len(shown["certificates"]) == 1


def test_nodes_outlive_a_restart_of_the_database(postgres_programs: Path, tmp_path: Path) -> None:
    with running_postgres(postgres_programs) as server, two_nodes(server, tmp_path) as nodes:
        outlive_a_restart(nodes, server, tmp_path)


def outlive_a_restart(nodes: list[Served], server: PostgresServer, folder: Path) -> None:
    first, second = nodes
    device = LiveDevice(first, folder)
    with session(second, device) as tls:
        server.stop()
        first.wait_for_line("event=feed.broken")
        assert mqtt_answer(first, device.pair(), DEVICE) != 0  # nobody is let in while nobody can be asked
        server.start()
        run_fleet(first.home, "device", "revoke", DEVICE, "--reason", "lost")
        assert ends(tls)  # though the node had lost its feed meanwhile
    assert first.stop() == 0
    server.stop()
    assert second.stop() == 0  # in good time, though its database is gone


class Admin:
    """An admin of the fleet, on one connection to each node."""

    def __init__(self, nodes: list[Served], folder: Path, name: str) -> None:
        (folder / "password").write_text("correct horse battery staple")
        run_fleet(
            nodes[0].home, "operator", "add", name, "--role", "admin", "--out", str(folder / "operators"),
            "--password-file", str(folder / "password"),
        )  # fmt: skip
        self.pair = folder / "operators" / f"{name}.pem", folder / "operators" / f"{name}.key"
        self.connections = [self.connection(node) for node in nodes]

    def connection(self, node: Served) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=node.ca_file)
        context.load_cert_chain(*self.pair)
        host, port = node.address("http")
        return http.client.HTTPSConnection(host, port, context=context, timeout=PATIENCE_SECONDS)

    def ask(self, number: int, path: str, body: object = None, key: str = "") -> tuple[int, Any]:
        """The answer of that node."""
        connection = self.connections[number]
        headers = {"Content-Type": "application/json", **({"Idempotency-Key": key} if key else {})}
        text = json.dumps(body) if body is not None else None
        connection.request("POST" if text else "GET", path, text, headers if text else {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def ask_both(self, path: str, body: object, key: str) -> list[tuple[int, Any]]:
        """At once."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda number: self.ask(number, path, body, key), range(2)))


def test_one_key_at_both_nodes_is_one_change(nodes: list[Served], tmp_path: Path) -> None:
    bob = Admin(nodes, tmp_path, "bob")
    for n in range(20):
        one, two = bob.ask_both("/v1/devices", {"id": f"box-{n}", "model": "default"}, f"add-{n}")
        assert one == two
        assert one[0] == 201
        one, two = bob.ask_both("/v1/tokens", {"device": f"box-{n}"}, f"token-{n}")
        assert (one[0], one[1]["id"]) == (two[0], two[1]["id"]) == (201, one[1]["id"])
        assert ("token" in one[1]) is not ("token" in two[1])
    act = {"filter": "model=default and state=registered", "act": "suspend", "expected": 20}
    answers = bob.ask_both("/v1/bulk", act, "all")
    for number, (status, answer) in enumerate(answers):
        if status == 409:  # the other node had done it, and not yet kept its answer
            assert answer["code"] == "count-differs"
            answers[number] = bob.ask(number, "/v1/bulk", act, "all")
    assert answers[0] == answers[1]
    assert answers[0][0] == 200
    listed = json.loads(run_fleet(nodes[1].home, "device", "list", "-o", "json"))
    assert {row["state"] for row in listed if row["id"].startswith("box-")} == {"suspended"}


def test_an_operator_revoked_at_one_node_is_out_at_the_other(nodes: list[Served], tmp_path: Path) -> None:
    eve = Admin(nodes, tmp_path, "eve")
    assert [eve.ask(number, "/v1/models")[0] for number in range(2)] == [200, 200]
    stream = eve.connection(nodes[1])
    stream.request("GET", "/v1/events")
    following = stream.getresponse()
    assert following.status == 200
    run_fleet(nodes[0].home, "operator", "revoke", "eve")
    assert following.read().count(b": still here") == 1  # to its end, which is before the first heartbeat
    assert [eve.ask(number, "/v1/models")[0] for number in range(2)] == [403, 403]
