"""Steps of the demo, in order, by name. Each acts as an operator or a device and returns its findings, or raises
StepFailed. Later steps use what earlier ones created.
"""

import asyncio
import json
import sqlite3
import ssl
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from typing import Any
from urllib.parse import quote

from fleet.demo import devices
from fleet.demo.foreign_ca import make_foreign_certificate
from fleet.demo.harness import AGENT, FLEET, PATIENCE_SECONDS, STATION, Stage, StepFailed
from fleet.demo.subscriber import Subscriber
from fleet.home.layout import Home, open_registry
from fleet.home.unix_user import act_now
from fleet.services import revocation

BOARD, CAMERA, METER = "board-1", "cam-7", "meter-3"
DEVICES = (BOARD, CAMERA, METER)
MODEL = "demo"
MESSAGES_EACH = 50
ROTATE_MESSAGES_AFTER = 50  # published after the renewal, so that the new connection carries some

Facts = dict[str, Any]


def expect(holds: bool, otherwise: str) -> None:
    """Raises: StepFailed with `otherwise`, unless `holds`."""
    if not holds:
        raise StepFailed(otherwise)


def init(stage: Stage) -> Facts:
    """A home: CAs, server certificate, registry; and a model for the devices."""
    stage.call(FLEET, "init", str(stage.home), "--name", "demo")
    stage.call(FLEET, "model", "add", MODEL, "--lifetime", "1d")
    return {"home": str(stage.home)}


def serve(stage: Stage) -> Facts:
    """The server, on free ports, with a broker behind the gateway."""
    ports = [word for name in ("est", "mqtt", "http") for word in (f"--{name}", "127.0.0.1:0")]
    ready = stage.root / "ready.json"
    words = ["serve", *ports, "--upstream", stage.upstream, "--ready-file", str(ready)]
    server = stage.start("fleet-serve", FLEET, *words)
    stage.wait_for_file(ready, server)
    endpoints = stage.ready()
    trust = ssl.create_default_context(cafile=endpoints["ca_file"])
    with urllib.request.urlopen(f"{endpoints['http']}/healthz", context=trust, timeout=10) as answer:  # noqa: S310 - our own URL
        expect(answer.status == 200, f"/healthz answered {answer.status}")
    return {name: endpoints[name] for name in ("est", "mqtt", "http")}


def factory(stage: Stage) -> Facts:
    """A blank board behind a serial line gets its certificate from a factory station."""
    kit, line = stage.root / "station", stage.root / "ttyBOARD"
    stage.call(FLEET, "station", "add", "line-1", "--model", MODEL, "--out", str(kit))
    board = stage.start(
        "emulated-board", AGENT, "--home", str(stage.device_home(BOARD)), "emulate", "--pty", str(line), "--once"
    )
    stage.wait_for_file(line, board)
    words = ["--port", str(line), "--est", stage.ready()["est"], "--mqtt", devices.mqtt_address(stage)]
    words += ["--cert", str(kit / "station.pem"), "--key", str(kit / "station.key"), "--ca", str(kit / "ca.pem")]
    words += ["--device-id", BOARD, "--model", MODEL, "--ledger", str(kit / "ledger.jsonl")]
    row = json.loads(stage.call(STATION, "provision", *words, "-o", "json").stdout)
    expect(board.process.wait(PATIENCE_SECONDS) == 0, "the emulated board did not end well")
    return {"device": BOARD, "certificate": row["certificate_serial"], "line_seconds": row["seconds"]}


def enroll(stage: Stage) -> Facts:
    """Two devices make their own keys and enroll, each with a one-time token."""
    tokens = {}
    for device in (CAMERA, METER):
        stage.call(FLEET, "device", "add", device, "--model", MODEL)
        tokens[device] = stage.call(FLEET, "token", "create", "--device", device).stdout
        devices.initialize(stage, device)
        devices.call(stage, device, "enroll", give=tokens[device])
    devices.initialize(stage, METER, home="thief")
    devices.call(stage, "thief", "enroll", give=tokens[METER], expect=1)
    return {"devices": [CAMERA, METER], "token_used_again": "refused"}


def connect(stage: Stage) -> Facts:
    """All three connect to the gateway on mutual TLS."""
    for device in DEVICES:
        devices.run(stage, device)
    for device in DEVICES:
        devices.wait_connected(stage, device)
    return {"connected": list(DEVICES)}


def publish(stage: Stage) -> Facts:
    """Every device publishes; a subscriber at the broker counts."""
    with Subscriber(stage.home, "devices/+/up/count") as subscriber:
        for number in range(MESSAGES_EACH):
            for device in DEVICES:
                stage.running[device].say(f"devices/{device}/up/count {device} {number}")
        wanted = {f"{device} {number}" for device in DEVICES for number in range(MESSAGES_EACH)}
        subscriber.wait_until(lambda seen: wanted <= set(seen), f"{len(wanted)} messages")
        seen = subscriber.seen()
    expect(len(seen) == len(wanted), f"{len(seen)} messages for {len(wanted)} published")
    return {"published": len(wanted), "seen": len(seen)}


def isolate(stage: Stage) -> Facts:
    """Attacks are refused: another device's topic, a foreign CA's certificate, no certificate."""
    stage.running.pop(METER).stop()
    with Subscriber(stage.home, "devices/+/up/#") as subscriber:
        refusal = devices.publish_elsewhere(stage, METER, f"devices/{CAMERA}/up/forged")
        expect("forged" not in subscriber.seen(), "a forged message reached the broker")
    devices.run(stage, METER)
    devices.wait_connected(stage, METER)
    foreign = make_foreign_certificate(stage.root / "foreign", METER)
    return {
        "another_topic": refusal,
        "foreign_certificate": devices.refused_by_tls(stage, foreign),
        "no_certificate": devices.refused_by_tls(stage, None),
    }


def rotate(stage: Stage) -> Facts:
    """A device renews while publishing QoS 1: no message lost, none duplicated."""
    agent = stage.running[CAMERA]
    before = devices.status(stage, CAMERA)["serial"]
    with Subscriber(stage.home, f"devices/{CAMERA}/up/rotate") as subscriber:
        with devices.publishing(agent, f"devices/{CAMERA}/up/rotate", ROTATE_MESSAGES_AFTER) as wanted:
            subscriber.wait_until(lambda seen: len(seen) > 10, "the first messages")
            devices.call(stage, CAMERA, "renew")
        subscriber.wait_until(lambda seen: set(wanted) <= set(seen), f"{len(wanted)} messages")
        seen = subscriber.seen()
    after = devices.status(stage, CAMERA)["serial"]
    expect(before != after, "the certificate is still the old one")
    lost, twice = len(set(wanted) - set(seen)), len(seen) - len(set(seen))
    expect(lost == 0 and twice == 0, f"{lost} messages lost, {twice} came twice")
    return {"published": len(wanted), "lost": lost, "duplicated": twice, "old": before, "new": after}


def revoke(stage: Stage) -> Facts:
    """Revocation cuts the live session, refuses the next one, and refuses re-enrollment."""
    agent = stage.running[METER]
    since = len(agent.lines)
    started = time.monotonic()
    asyncio.run(_revoke(stage, METER))
    cut = agent.wait_for(lambda line: " disconnected" in line, "that it was disconnected", since)
    # MQTT 3.1.1 has no reason that says "for good".
    agent.wait_for(lambda line: "cause=ended" in line or "cause=refused" in line, "that it was refused", since)
    devices.call(stage, METER, "renew", expect=1)
    return {"cut_ms": round((cut - started) * 1000, 1), "reconnect": "refused", "reenroll": "refused"}


async def _revoke(stage: Stage, device: str) -> None:
    """As with `fleet device revoke`, from a process other than the server's."""
    registry = await open_registry(Home(stage.home))
    try:
        await revocation.revoke(registry, device, act=act_now(), reason="demo")
    finally:
        await registry.close()


def audit(stage: Stage) -> Facts:
    """The audit's tree verifies; a row's proof verifies offline, a forged one does not; a flipped byte is detected."""
    verified = json.loads(stage.call(FLEET, "audit", "verify", "-o", "json").stdout)
    proof = stage.root / "proof.json"
    public_key = str(Home(stage.home).audit_public_key)
    stage.call(FLEET, "audit", "prove", "1", "--out", str(proof))  # the server has sealed it by now
    check = ("audit", "check-proof", str(proof), "--public-key", public_key)
    proved = json.loads(stage.call(FLEET, *check, "-o", "json").stdout)
    proof.write_text(proof.read_text().replace(proved["actor"], "nobody"))
    refused = stage.call(FLEET, *check, expect=1)
    copy = stage.root / "tampered.db"
    # Read only: a second connection that may write or checkpoint must hold the registry's lock.
    live = f"file:{quote(str(stage.home / 'registry.db'))}?mode=ro"
    with closing(sqlite3.connect(live, uri=True)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    content = bytearray(copy.read_bytes())
    content[content.index(b"device.revoke")] ^= 1
    copy.write_bytes(content)
    found = stage.call(FLEET, "audit", "verify", "--file", str(copy), "--public-key", public_key, expect=1)
    return {
        "rows": verified["rows"],
        "sealed": verified["sealed"],
        "proved_row": proved["seq"],
        "forged_proof": f"refused: {_sentence(refused.stderr)}",
        "flipped_byte": f"detected: {_sentence(found.stderr)}",
    }


def _sentence(stderr: str) -> str:
    """What a refused command said last, without what marks it as an error."""
    return stderr.strip().splitlines()[-1].removeprefix("Error: ").rpartition(" (")[0]


Step = Callable[[Stage], Facts]

STEPS: tuple[Step, ...] = (init, serve, factory, enroll, connect, publish, isolate, rotate, revoke, audit)
