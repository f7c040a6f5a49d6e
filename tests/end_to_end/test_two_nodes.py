"""Two `fleet serve` on one PostgreSQL: whichever node is asked, there is one fleet."""

import http.client
import json
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fleet.est_client.client import EstClient, Policy
from fleet.est_client.errors import EstRefused
from fleet.wire.mqtt.codes import V311
from tests.end_to_end.test_device_life import DEVICE, LiveDevice, csr_for, mqtt_answer, renewal_with
from tests.postgres_server import PASSWORD, PostgresServer, running_postgres
from tests.serving import Served, run_fleet

PATIENCE_SECONDS = 120.0


@pytest.fixture
def own_server(postgres_programs: Path) -> Iterator[PostgresServer]:
    """A cluster that this test may stop."""
    with running_postgres(postgres_programs) as server:
        yield server


@pytest.fixture
def nodes(own_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Served]]:
    """Two nodes: two homes with the same CAs and the same database."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    home = tmp_path / "node 0"
    run_fleet(home, "init", str(home), "--database", own_server.tcp_url(own_server.make_database()))
    shutil.copytree(home, tmp_path / "node 1")
    served = [Served(tmp_path / f"node {n}", tmp_path / f"ready {n}.json").start() for n in range(2)]
    yield served
    for each in served:
        each.stop()


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


def test_a_revocation_on_one_node_cuts_the_session_on_the_other(nodes: list[Served], tmp_path: Path) -> None:
    first, second = nodes
    device = LiveDevice(first, tmp_path)  # enrolled at the first node
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
    run_fleet(first.home, "device", "add", DEVICE, "--model", "default")
    token = run_fleet(second.home, "token", "create", "--device", DEVICE).strip()

    def enroll(node: Served) -> None:
        client = EstClient(node.est, node.ca_file, basic=(DEVICE, token), policy=Policy(patience_seconds=0))
        client.simpleenroll(csr_for(DEVICE))

    enroll(second)
    for node in nodes:
        with pytest.raises(EstRefused):
            enroll(node)
    shown = json.loads(run_fleet(first.home, "device", "show", DEVICE, "-o", "json"))
    assert len(shown["certificates"]) == 1


def test_nodes_outlive_a_restart_of_the_database(
    nodes: list[Served], own_server: PostgresServer, tmp_path: Path
) -> None:
    first, second = nodes
    device = LiveDevice(first, tmp_path)
    with session(second, device) as tls:
        own_server.stop()
        first.wait_for_line("event=feed.broken")
        assert mqtt_answer(first, device.pair(), DEVICE) != 0  # nobody is let in while nobody can be asked
        own_server.start()
        run_fleet(first.home, "device", "revoke", DEVICE, "--reason", "lost")
        assert ends(tls)  # though the node had lost its feed meanwhile
    assert first.stop() == 0
    own_server.stop()
    assert second.stop() == 0  # in good time, though its database is gone


class Bob:
    """An admin of the fleet, on one connection to each node."""

    def __init__(self, nodes: list[Served], folder: Path) -> None:
        (folder / "password").write_text("correct horse battery staple")
        run_fleet(
            nodes[0].home, "operator", "add", "bob", "--role", "admin", "--out", str(folder / "operators"),
            "--password-file", str(folder / "password"),
        )  # fmt: skip
        self.pair = folder / "operators" / "bob.pem", folder / "operators" / "bob.key"
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
    bob = Bob(nodes, tmp_path)
    for n in range(20):
        one, two = bob.ask_both("/v1/devices", {"id": f"cam-{n}", "model": "default"}, f"add-{n}")
        assert one == two
        assert one[0] == 201
        one, two = bob.ask_both("/v1/tokens", {"device": f"cam-{n}"}, f"token-{n}")
        assert (one[0], one[1]["id"]) == (two[0], two[1]["id"]) == (201, one[1]["id"])
        assert ("token" in one[1]) is not ("token" in two[1])
    act = {"filter": "model=default and state=registered", "act": "suspend", "expected": 20}
    one, two = bob.ask_both("/v1/bulk", act, "all")
    assert one == two
    assert one[0] == 200
    listed = json.loads(run_fleet(nodes[1].home, "device", "list", "-o", "json"))
    assert {row["state"] for row in listed} == {"suspended"}


def test_an_operator_revoked_at_one_node_is_out_at_the_other(nodes: list[Served], tmp_path: Path) -> None:
    bob = Bob(nodes, tmp_path)
    assert [bob.ask(number, "/v1/models")[0] for number in range(2)] == [200, 200]
    stream = bob.connection(nodes[1])
    stream.request("GET", "/v1/events")
    following = stream.getresponse()
    assert following.status == 200
    run_fleet(nodes[0].home, "operator", "revoke", "bob")
    begun = time.monotonic()
    following.read()  # to its end
    assert time.monotonic() - begun < 5  # long before the next heartbeat
    assert [bob.ask(number, "/v1/models")[0] for number in range(2)] == [403, 403]
