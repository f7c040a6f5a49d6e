"""mosquitto_pub and mosquitto_sub, openssl s_client: stock clients at the gateway with certificates that we issued."""

import json
import os
import pwd
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.demo.foreign_ca import make_foreign_certificate
from fleet.demo.harness import AGENT
from fleet.servers.gateway.broker.mosquitto import mosquitto_program
from fleet.wire.mqtt.codes import V5
from fleet.wire.mqtt.connect import Connect, encode_connect
from tests.interop.stock_device import needs
from tests.serving import Served, run_agent, run_fleet, start
from tests.waiting import PATIENCE_SECONDS, wait_until


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("fleet")
    run_fleet(folder / "home", "init", str(folder / "home"))
    serving = Served(folder / "home", folder / "ready.json").start()
    yield serving
    serving.stop()


class Device:
    """A device that has enrolled by its agent, whose files stock clients use."""

    def __init__(self, served: Served, name: str, folder: Path, model: str = "default") -> None:
        self.name, self.served, self.home = name, served, folder / name
        host, port = served.address("mqtt")
        run_fleet(served.home, "device", "add", name, "--model", model)
        token = run_fleet(served.home, "token", "create", "--device", name)
        words = ["--device-id", name, "--est", served.est, "--mqtt", f"{host}:{port}", "--ca", str(served.ca_file)]
        run_agent(self.home, "init", *words)
        run_agent(self.home, "enroll", give=token)

    def words(self, version: str = "5") -> list[str]:
        """What mosquitto_pub and mosquitto_sub need to come as this device."""
        host, port = self.served.address("mqtt")
        key, certificate = self.home / "current" / "key.pem", self.home / "current" / "cert.pem"
        tls = ["--cafile", str(self.served.ca_file), "--cert", str(certificate), "--key", str(key)]
        return ["-h", host, "-p", str(port), *tls, "-i", self.name, "-V", version]

    def publish(self, topic: str, payload: str, version: str = "5", qos: int = 1) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["mosquitto_pub", *self.words(version), "-t", topic, "-m", payload, "-q", str(qos)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )


@pytest.fixture
def device(served: Served, tmp_path: Path, request: pytest.FixtureRequest) -> Device:
    needs("mosquitto_pub", "mosquitto_sub", "mosquitto")
    return Device(served, re.sub(r"[^a-z0-9]+", "-", request.node.name)[-50:].strip("-"), tmp_path)


def backend(served: Served, topic_filter: str, count: int) -> "subprocess.Popen[str]":
    """mosquitto_sub at the broker itself; returns once it is subscribed."""
    listening = subprocess.Popen(
        [
            *("stdbuf", "-oL", "mosquitto_sub", "--unix", str(served.home / "run" / "broker.sock"), "-u", "_backend"),
            *("-t", topic_filter, "-C", str(count), "-W", str(PATIENCE_SECONDS), "-d"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert listening.stdout is not None
    for line in listening.stdout:
        if "SUBACK" in line or "Subscribed" in line:
            break
    return listening


def test_who_offers_a_protocol_that_the_listener_has_not_is_refused(served: Served, tmp_path: Path) -> None:
    device = Device(served, "alpn-1", tmp_path)
    context = ssl.create_default_context(cafile=served.ca_file)
    context.load_cert_chain(device.home / "current" / "cert.pem", device.home / "current" / "key.pem")
    connect = encode_connect(Connect(V5, "alpn-1"))
    raw = socket.create_connection(served.address("est"), timeout=PATIENCE_SECONDS)
    context.set_alpn_protocols(["mqtt"])
    with context.wrap_socket(raw, server_hostname="localhost") as stream:
        assert stream.selected_alpn_protocol() is None  # that listener agrees on none
        stream.sendall(connect)
        assert stream.recv(4096)[:12] == b"HTTP/1.1 400"
    context.set_alpn_protocols(["http/1.1"])
    with (
        socket.create_connection(served.address("mqtt"), timeout=PATIENCE_SECONDS) as raw,
        pytest.raises(ssl.SSLError, match="no application protocol"),
    ):
        context.wrap_socket(raw, server_hostname="localhost")
    context = ssl.create_default_context(cafile=served.ca_file)
    context.load_cert_chain(device.home / "current" / "cert.pem", device.home / "current" / "key.pem")
    raw = socket.create_connection(served.address("mqtt"), timeout=PATIENCE_SECONDS)
    with context.wrap_socket(raw, server_hostname="localhost") as stream:
        stream.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert stream.recv(4096) == b""
    served.wait_for_line("code=not-connect")


def connected(served: Served) -> set[str]:
    """Client ids of the sessions that the registry has as open; it is told of them ten times a second."""
    listed = json.loads(run_fleet(served.home, "session", "list", "--connected", "-o", "json"))
    return {each["client_id"] for each in listed}


def test_an_agent_a_bridge_and_mosquitto_pub_of_one_device_live_side_by_side(served: Served, tmp_path: Path) -> None:
    needs("mosquitto_pub", "mosquitto_sub", "mosquitto")
    run_fleet(served.home, "model", "add", "many", "--client-id", "prefix")
    device = Device(served, "side-1", tmp_path, "many")
    current, site = device.home / "current", tmp_path / "site.sock"
    (tmp_path / "site.conf").write_text(
        f"user {pwd.getpwuid(os.geteuid()).pw_name}\nlistener 0 {site}\nallow_anonymous true\nconnection fleet\n"
        f"address {':'.join(map(str, served.address('mqtt')))}\nremote_clientid side-1/bridge\ntry_private false\n"
        f"bridge_cafile {served.ca_file}\nbridge_certfile {current}/cert.pem\nbridge_keyfile {current}/key.pem\n"
        "notifications false\ntopic devices/side-1/up/# out 1\ntopic devices/side-1/down/# in 1\n"
    )
    program = mosquitto_program()
    assert program is not None
    heard = backend(served, "devices/side-1/up/#", 2)
    agent = start("agent", *AGENT, "--home", str(device.home), "run")
    bridge = subprocess.Popen([program, "-c", str(tmp_path / "site.conf")], stderr=subprocess.DEVNULL)
    try:
        agent.wait_for(lambda line: " connected " in line, "that it is connected")
        served.wait_for_line("client_id=side-1/bridge")
        local = ["mosquitto_pub", "--unix", str(site), "-q", "1", "-t", "devices/side-1/up/site", "-m", "by the bridge"]
        assert subprocess.run(local, timeout=PATIENCE_SECONDS, check=False).returncode == 0
        words = [*device.words(), "-i", "side-1/pub", "-t", "devices/side-1/up/pub", "-m", "directly", "-q", "1"]
        assert subprocess.run(["mosquitto_pub", *words], timeout=PATIENCE_SECONDS, check=False).returncode == 0
        assert set(heard.communicate(timeout=PATIENCE_SECONDS)[0].split("\n")) >= {"by the bridge", "directly"}
        wait_until(
            lambda: connected(served) >= {"side-1", "side-1/bridge"}, "the agent's or the bridge's session is not open"
        )
    finally:
        agent.stop()
        bridge.terminate()
        bridge.wait()
        heard.kill()


@pytest.mark.parametrize("version", ["311", "5"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_stock_publisher_reaches_an_application(served: Served, device: Device, version: str, qos: int) -> None:
    listening = backend(served, f"devices/{device.name}/up/t", 1)
    done = device.publish(f"devices/{device.name}/up/t", f"hello {version} {qos}", version, qos)
    out, _ = listening.communicate(timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    assert f"hello {version} {qos}" in out


def test_a_stock_subscriber_hears_an_application(served: Served, device: Device) -> None:
    topic = f"devices/{device.name}/down/cmd"
    subscribing = subprocess.Popen(
        ["stdbuf", "-oL", "mosquitto_sub", *device.words(), "-t", topic, "-C", "1", "-W", str(PATIENCE_SECONDS), "-d"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert subscribing.stdout is not None
    for line in subscribing.stdout:
        if "SUBACK" in line or "Subscribed" in line:
            break
    subprocess.run(
        [
            "mosquitto_pub",
            "--unix",
            str(served.home / "run" / "broker.sock"),
            "-u",
            "_backend",
            "-t",
            topic,
            "-m",
            "go",
        ],
        check=True,
        timeout=PATIENCE_SECONDS,
    )
    out, _ = subscribing.communicate(timeout=PATIENCE_SECONDS)
    assert "go" in out.split()


def test_another_devices_topic_and_client_id_are_refused(served: Served, device: Device, tmp_path: Path) -> None:
    other = Device(served, f"{device.name}-other", tmp_path)
    assert "Not authorized" in device.publish(f"devices/{other.name}/up/t", "forged", version="5").stderr
    # 3.1.1 has no refusal: the message is acknowledged and dropped.
    assert device.publish(f"devices/{other.name}/up/t", "forged", version="311").returncode == 0
    served.wait_for_line(f"topic=devices/{other.name}/up/t")
    posing = [word if word != device.name else other.name for word in device.words()]
    done = subprocess.run(
        ["mosquitto_pub", *posing, "-t", f"devices/{other.name}/up/t", "-m", "forged"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode != 0
    assert "not valid" in done.stderr.lower() or "refused" in done.stderr.lower() or "authorized" in done.stderr.lower()


def test_a_revoked_device_is_out_and_stays_out(served: Served, device: Device) -> None:
    topic = f"devices/{device.name}/down/#"
    subscribing = subprocess.Popen(
        ["stdbuf", "-oL", "mosquitto_sub", *device.words(), "-t", topic, "-d"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert subscribing.stdout is not None
    for line in subscribing.stdout:
        if "SUBACK" in line or "Subscribed" in line:
            break
    run_fleet(served.home, "device", "revoke", device.name, "--reason", "test")
    said, _ = subscribing.communicate(timeout=PATIENCE_SECONDS)
    assert "DISCONNECT (152)" in said  # MQTT 5.0, 3.14.2.1: 0x98, administrative action
    assert device.publish(f"devices/{device.name}/up/t", "still here").returncode != 0


def s_client(served: Served, *words: str) -> str:
    """What openssl s_client says of a connection to the gateway, with CONNECT and DISCONNECT sent at once."""
    needs("openssl")
    host, port = served.address("mqtt")
    packets = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00\xe0\x00"
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"{host}:{port}", "-CAfile", str(served.ca_file), "-ign_eof", *words],
        input=packets,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return (done.stdout + done.stderr).decode(errors="replace")


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_client_without_a_certificate_is_refused(served: Served, version: str) -> None:
    said = s_client(served, version)
    assert "Verify return code: 0 (ok)" in said or "alert" in said
    assert "alert certificate required" in said or "alert handshake failure" in said


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_client_with_a_foreign_certificate_is_refused(served: Served, version: str, tmp_path: Path) -> None:
    certificate, key = make_foreign_certificate(tmp_path / "foreign", "dev-1")
    assert "alert unknown ca" in s_client(served, version, "-cert", str(certificate), "-key", str(key))


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_client_with_a_good_certificate_gets_an_answer(served: Served, device: Device, version: str) -> None:
    current = device.home / "current"
    said = s_client(served, version, "-cert", str(current / "cert.pem"), "-key", str(current / "key.pem"))
    assert "Verify return code: 0 (ok)" in said
    assert "alert" not in said.replace("no alert", "")
