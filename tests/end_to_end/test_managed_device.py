"""`fleet device ping|report|renew|log-level|trust-update` to a device's agent, at a served fleet."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from fleet.servers.gateway.broker.mosquitto import mosquitto_program
from fleet.wire.device_report import CONTEXT
from fleet.wire.signatures import verify
from tests.end_to_end.live_device import DEVICE, LiveDevice
from tests.serving import ANY_PORTS, Served, run_fleet

pytestmark = pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")


@pytest.fixture
def served(home: Path, tmp_path: Path) -> Iterator[Served]:
    serving = Served(home, tmp_path / "ready.json", ANY_PORTS).start()
    yield serving
    serving.stop()


def test_a_devices_agent_obeys_and_answers_signed(served: Served, tmp_path: Path) -> None:
    home, device = served.home, LiveDevice(served, tmp_path)
    run_fleet(home, "device", "report", DEVICE, "--last", expect=1)
    run_fleet(home, "device", "ping", DEVICE, expect=1)  # no agent runs
    try:
        agent = device.run()
        before = json.loads(run_fleet(home, "device", "report", DEVICE, "-o", "json"))
        certificate = x509.load_pem_x509_certificate(device.pair()[0].read_bytes())
        assert int(before["serial"], 16) == certificate.serial_number
        octets = CONTEXT + before["text"].encode()
        verify(certificate.public_key(), base64.b64decode(before["signature"]), octets)
        report = before["report"]
        assert (report["device_id"], report["state"], report["connected"]) == (DEVICE, "enrolled", True)
        assert report["clock"]["is_set"]
        assert abs(report["clock"]["skew_seconds"]) < 60
        assert set(report["slots"]) == {"slot-a", "slot-b"}

        renewed = json.loads(run_fleet(home, "device", "renew", DEVICE, "-o", "json"))
        assert renewed["connected"] is True
        assert renewed["serial"] != before["serial"]
        after = x509.load_pem_x509_certificate(device.pair()[0].read_bytes())
        assert int(renewed["serial"], 16) == after.serial_number
        run_fleet(home, "device", "renew", DEVICE, expect=1)  # not twice a minute

        assert "seconds:" in run_fleet(home, "device", "ping", DEVICE)
        run_fleet(home, "device", "log-level", DEVICE, "debug")
        anchors = json.loads(run_fleet(home, "device", "trust-update", DEVICE, "-o", "json"))["anchors"]
        assert anchors == report["anchors"]
        run_fleet(home, "device", "notify", DEVICE, "agent/reboot")
        agent.wait_for(lambda line: "command-refused" in line and "no such command" in line, "what is unknown")
    finally:
        device.stop()
    assert (
        json.loads(run_fleet(home, "device", "report", DEVICE, "--last", "-o", "json"))["serial"] == renewed["serial"]
    )
