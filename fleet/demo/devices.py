"""Demo devices: their agents, their certificates, and attacks that must be refused."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from fleet.demo.harness import AGENT, PATIENCE_SECONDS, Finished, Running, Stage, StepFailed

SECONDS_BETWEEN_MESSAGES = 0.01

Pair = tuple[Path, Path]
"""Certificate chain and key, PEM."""


def mqtt_address(stage: Stage) -> str:
    """HOST:PORT of the gateway."""
    return str(stage.ready()["mqtt"]).rpartition("//")[2]


def call(stage: Stage, device: str, *words: str, give: str | None = None, expect: int | None = 0) -> Finished:
    """Run the device's agent to completion, as `Stage.call`."""
    return stage.call(AGENT, "--home", str(stage.device_home(device)), *words, give=give, expect=expect)


def initialize(stage: Stage, device: str, home: str = "") -> None:
    """Configure a device, in the folder `home`: its id, the servers' addresses and its trusted root CA."""
    ready = stage.ready()
    words = ["--device-id", device, "--est", ready["est"], "--mqtt", mqtt_address(stage), "--ca", ready["ca_file"]]
    call(stage, home or device, "init", *words)


def run(stage: Stage, device: str) -> Running:
    """Start the device's agent, which publishes what it reads from standard input."""
    return stage.start(device, AGENT, "--home", str(stage.device_home(device)), "run", "--stdin")


def wait_connected(stage: Stage, device: str) -> None:
    """Return when the device's agent is connected."""
    call(stage, device, "status", "--wait-connected", "20")


def status(stage: Stage, device: str) -> dict[str, Any]:
    """The status reported by the device's agent."""
    answer: dict[str, Any] = json.loads(call(stage, device, "status", "-o", "json", expect=None).stdout)
    return answer


def identity(stage: Stage, device: str) -> Pair:
    """The device's certificate and key files in its agent's home."""
    current = stage.device_home(device) / "current"
    return current / "cert.pem", current / "key.pem"


@contextmanager
def publishing(agent: Running, topic: str, after: int) -> Iterator[list[str]]:
    """Publish 0, 1, 2, ... to `topic` through `agent` while the block runs, and `after` more afterwards."""
    published: list[str] = []
    stop = threading.Event()

    def work() -> None:
        last: int | None = None
        while last is None or len(published) < last:
            published.append(str(len(published)))
            agent.say(f"{topic} {published[-1]}")
            if stop.wait(SECONDS_BETWEEN_MESSAGES) and last is None:
                last = len(published) + after

    thread = threading.Thread(target=work, name=f"publish {topic}")
    thread.start()
    try:
        yield published
    finally:
        stop.set()
        thread.join()


def client_context(stage: Stage, pair: Pair | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=stage.ready()["ca_file"])
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


def publish_elsewhere(stage: Stage, device: str, topic: str) -> str:
    """Publish to `topic` with the device's certificate from an independent client; the refusal.

    MQTT 3.1.1 has none: there the message is acknowledged and dropped, which the caller must see at the broker.

    Raises: StepFailed: it was accepted.
    """
    for protocol in (MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311):
        answer = _try_to_publish(stage, device, topic, protocol)
        if answer != "Unsupported protocol version":
            break
    if answer == "Success" and protocol is MQTTProtocolVersion.MQTTv311:
        return "acknowledged and dropped"
    if answer == "Success":
        raise StepFailed(f"{device} published to {topic}")
    return answer


def _try_to_publish(stage: Stage, device: str, topic: str, protocol: MQTTProtocolVersion) -> str:
    """The server's response text."""
    host, _, port = mqtt_address(stage).rpartition(":")
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=device, protocol=protocol, reconnect_on_failure=False)
    client.tls_set_context(client_context(stage, identity(stage, device)))
    answered = threading.Event()
    answers: list[str] = []

    def answer(text: str) -> None:
        answers.append(text)
        answered.set()

    def on_connect(_c: mqtt.Client, _u: Any, _f: Any, reason: ReasonCode, _p: Any) -> None:
        if reason.is_failure:
            answer(str(reason))
        else:
            client.publish(topic, "forged", qos=1)

    client.on_connect = on_connect
    client.on_publish = lambda _c, _u, _m, reason, _p: answer(str(reason))
    client.on_disconnect = lambda _c, _u, _f, reason, _p: answer(f"disconnected: {reason}")
    client.connect(host.strip("[]"), int(port))
    client.loop_start()
    try:
        if not answered.wait(PATIENCE_SECONDS):
            raise StepFailed(f"no answer to {device}'s publish")
        return answers[0]
    finally:
        client.disconnect()
        client.loop_stop()


def refused_by_tls(stage: Stage, pair: Pair | None) -> str:
    """The gateway's refusal of a connection with this certificate, or with none. Raises: StepFailed: it did not."""
    host, _, port = mqtt_address(stage).rpartition(":")
    context = client_context(stage, pair)
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), PATIENCE_SECONDS) as raw,
            context.wrap_socket(raw, server_hostname=host.strip("[]")) as tls,
        ):
            # In TLS 1.3 the server verifies after the client has finished: the alert arrives at the first read.
            tls.sendall(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00")
            got = tls.recv(16)
    except (ssl.SSLError, ConnectionError) as error:
        return getattr(error, "reason", None) or type(error).__name__
    if got:
        raise StepFailed("the gateway answered a connection without a certificate of ours")
    return "closed"
