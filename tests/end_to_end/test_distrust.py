"""A distrust at a real server: the session ends, the agent renews and comes back, the old certificate does not."""

import json
import shutil
from pathlib import Path

from tests.end_to_end.live_device import LiveDevice, csr_for, mqtt_answer, renewal_with
from tests.free_ports import free_ports
from tests.serving import Served, run_fleet


def shown(served: Served, rule: str) -> int:
    left: int = json.loads(run_fleet(served.home, "distrust", "show", rule, "-o", "json"))["left"]
    return left


def test_a_device_comes_back_that_had_renewed_and_not_connected_before_the_distrust(
    served: Served, tmp_path: Path
) -> None:
    device = LiveDevice(served, tmp_path, "cam-8")
    settings = device.home / "agent.toml"
    reachable = settings.read_text()
    settings.write_text(reachable.replace(f"{served.address('mqtt')[1]}", str(free_ports(1)[0])))
    device.call("renew", expect=None)  # the new certificate is stored, and cannot be proven
    stored = sorted(certificate.read_bytes() for certificate in device.home.glob("slot-*/cert.pem"))
    assert len(stored) == 2
    settings.write_text(reachable)
    words = ("distrust", "--model", "default", "--key-type", "EC-P256", "--spread", "1s", "--yes", "-o", "json")
    rule = json.loads(run_fleet(served.home, *words, "--reason", "leak"))["distrust"]["id"]
    try:
        device.run().wait_for(lambda line: " renewed " in line, "that it has renewed again")
        assert device.pair()[0].read_bytes() not in stored
    finally:
        device.stop()
        run_fleet(served.home, "distrust", "undo", rule)


def test_a_distrusted_device_renews_by_itself_and_comes_back(served: Served, tmp_path: Path) -> None:
    device = LiveDevice(served, tmp_path, "cam-7")
    agent = device.run()
    old = tmp_path / "old"
    shutil.copytree(device.home / "current", old)
    pair = (old / "cert.pem", old / "key.pem")
    words = ("distrust", "--model", "default", "--key-type", "EC-P256", "--spread", "1s", "-o", "json")
    assert json.loads(run_fleet(served.home, *words, "--dry-run"))["first"] == ["cam-7"]
    rule = json.loads(run_fleet(served.home, *words, "--count", "1", "--reason", "leak"))["distrust"]["id"]
    served.wait_for_line("code=certificate-distrusted")
    agent.wait_for(lambda line: " renewed " in line, "that the new certificate is proven")
    assert shown(served, rule) == 0
    assert mqtt_answer(served, pair, "cam-7") == 5
    assert mqtt_answer(served, device.pair(), "cam-7") == 0
    run_fleet(served.home, "distrust", "undo", rule)
    assert renewal_with(served, device.pair()).simplereenroll(csr_for("cam-7")) is not None
    device.stop()
    run_fleet(served.home, "audit", "verify")
