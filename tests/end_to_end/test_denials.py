"""A device that floods a served fleet with denied requests hides none of another's, in the log or in the audit."""

import json
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fleet.est_client.client import EstClient
from fleet.wire.csr import build_csr
from fleet.wire.mqtt.codes import V5, PacketType
from fleet.wire.mqtt.connect import Connect, Will, encode_connect
from fleet.wire.mqtt.publish import Publish, encode_publish
from fleet.wire.mqtt.reader import Packet, PacketReader
from fleet.wire.mqtt.subscribe import Subscribe, Subscription, encode_subscribe
from tests.serving import Served, run_fleet
from tests.waiting import PATIENCE_SECONDS

SECONDS = 4
A_SECOND = 500
STEPS = 20  # bursts a second
BURST = A_SECOND // STEPS


class Device:
    """An enrolled device that speaks MQTT 5.0 over plain sockets."""

    def __init__(self, served: Served, folder: Path, name: str, token: str) -> None:
        self.name, self._served = name, served
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = EstClient(served.est, served.ca_file, basic=(name, token)).simpleenroll(
            build_csr(key, (("2.5.4.3", name),), ())
        )
        file = folder / f"{name}.pem"
        file.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + certificate.public_bytes(Encoding.PEM)
        )
        self._context = ssl.create_default_context(cafile=served.ca_file)
        self._context.load_cert_chain(file)

    @contextmanager
    def connection(self, client_id: str = "", will: Will | None = None) -> Iterator[tuple[ssl.SSLSocket, int]]:
        """A connection, with the code of its CONNACK."""
        host, port = self._served.address("mqtt")
        with (
            socket.create_connection((host, port), timeout=PATIENCE_SECONDS) as plain,
            self._context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            secure.sendall(encode_connect(Connect(V5, client_id or self.name, will=will)))
            connack = next(packets(secure))
            yield secure, connack.body[1]

    def flood(self, denied: list[int], live: threading.Event, over: threading.Event) -> None:
        """For SECONDS and until it is over, filters that the model does not allow, no faster than they are answered.

        All are when this returns.
        """
        asked = encode_subscribe(Subscribe(1, (Subscription("devices/other/#", 1),)), V5)
        with self.connection() as (secure, code):
            assert code == 0
            live.set()
            sent, ends = [0], threading.Event()
            reader = threading.Thread(target=_count_subacks, args=(packets(secure), sent, ends, denied))
            reader.start()
            while not ends.is_set():
                if sent[0] - denied[0] < A_SECOND:
                    sent[0] += BURST
                    if sent[0] >= SECONDS * A_SECOND and over.is_set():
                        ends.set()
                    secure.sendall(asked * BURST)
                time.sleep(1 / STEPS)  # the pace of the load
            reader.join(PATIENCE_SECONDS)

    def is_denied_ten_times(self) -> None:
        """PUBLISH, SUBSCRIBE, will and client id, spread over the flood."""
        other = Will("devices/other/up/gone", b"x")
        with self.connection() as (secure, code):
            assert code == 0
            answers = packets(secure)
            for n in range(1, 4):
                secure.sendall(encode_publish(Publish("devices/other/up/t", b"x", 1, n), V5))
                assert next(answers).body[2] == 0x87
                secure.sendall(encode_subscribe(Subscribe(n, (Subscription("#", 1),)), V5))
                assert next(answers).body[-1] == 0x87
        for _ in range(2):
            with self.connection(will=other) as (_, code):
                assert code == 0x87
            with self.connection("other") as (_, code):
                assert code == 0x85


def packets(secure: ssl.SSLSocket) -> Iterator[Packet]:
    reader = PacketReader()
    while data := secure.recv(65_536):
        yield from reader.feed(data)


def _count_subacks(answers: Iterator[Packet], sent: list[int], ends: threading.Event, denied: list[int]) -> None:
    while not ends.is_set() or denied[0] < sent[0]:
        packet = next(answers)
        assert packet.type is PacketType.SUBACK
        assert packet.body[-1] == 0x87
        denied[0] += 1


def test_a_flood_of_denials_hides_none_of_another_device(served: Served, tmp_path: Path) -> None:
    token = run_fleet(served.home, "token", "create", "--model", "default", "--uses", "2").strip()
    loud, quiet = (Device(served, tmp_path, name, token) for name in ("loud", "quiet"))
    denied, live, over = [0], threading.Event(), threading.Event()
    flood = threading.Thread(target=loud.flood, args=(denied, live, over))
    began = time.monotonic()
    flood.start()
    assert live.wait(PATIENCE_SECONDS)
    try:
        quiet.is_denied_ten_times()
        assert flood.is_alive()
    finally:
        over.set()
        flood.join(PATIENCE_SECONDS)
    assert denied[0] >= SECONDS * A_SECOND
    assert served.stop() == 0
    minutes = (time.monotonic() - began) / 60

    def lines(event: str, device: str, code: str) -> int:
        return len(re.findall(rf"event={event} device={device} .*code={code}$", served.log, re.MULTILINE))

    assert lines("mqtt.publish", "quiet", "refused") == 3
    assert lines("mqtt.subscribe", "quiet", "refused") == 3
    assert lines("mqtt.connect", "quiet", "will-refused") == 2
    assert lines("mqtt.connect", r"quiet serial=\w+ client_id=other", "client-id-mismatch") == 2
    written = lines("mqtt.subscribe", "loud", "refused")
    suppressed = re.findall(r"event=log\.suppressed of=mqtt\.subscribe\.refused .*lines=(\d+)", served.log)
    assert written + sum(map(int, suppressed)) == denied[0]

    rows = json.loads(run_fleet(served.home, "audit", "list", "--action", "mqtt.*", "-o", "json"))
    counts: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        counts[row["actor"], row["action"], row["outcome"]] += 1 + int(row["detail"].get("left_out", "0"))
    assert counts == {
        ("device loud", "mqtt.subscribe", "refused"): denied[0],
        ("device quiet", "mqtt.publish", "refused"): 3,
        ("device quiet", "mqtt.subscribe", "refused"): 3,
        ("device quiet", "mqtt.connect", "will-refused"): 2,
        ("device quiet", "mqtt.connect", "client-id-mismatch"): 2,
    }
    assert sum(row["actor"] == "device loud" for row in rows) <= 2 + minutes  # one a minute, and one at the end
