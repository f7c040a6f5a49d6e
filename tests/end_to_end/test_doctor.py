"""`device-agent doctor` at a served fleet: ports of its settings that are each other's."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from device_agent.cli import cli
from fleet.servers.gateway.broker.mosquitto import mosquitto_program
from tests.end_to_end.live_device import LiveDevice
from tests.serving import Served

pytestmark = pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")


@pytest.fixture(scope="module")
def fleet(pristine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("doctor")
    serving = Served(Path(shutil.copytree(pristine_home, folder / "home", symlinks=True)), folder / "ready.json")
    yield serving.start()
    serving.stop()


@pytest.fixture(scope="module")
def device(fleet: Served, tmp_path_factory: pytest.TempPathFactory) -> LiveDevice:
    live = LiveDevice(fleet, tmp_path_factory.mktemp("device"))
    live.stop()
    return live


def failures(home: Path) -> dict[str, dict[str, str]]:
    told = json.loads(CliRunner().invoke(cli, ["--home", str(home), "doctor", "-o", "json"]).stdout)
    return {each["check"]: each for each in told["findings"] if each["state"] == "failed"}


@pytest.mark.parametrize("is_enrolled", [True, False])
def test_each_port_is_the_others(device: LiveDevice, tmp_path: Path, is_enrolled: bool) -> None:
    """The gateway answers nobody without a certificate: ALPN says that it speaks MQTT."""
    home = Path(shutil.copytree(device.home, tmp_path / "home", symlinks=True))
    assert failures(home) == {}
    text = (home / "agent.toml").read_text()
    est, mqtt = (re.search(pattern, text, re.MULTILINE) for pattern in (r"^url = .*:(\d+)", r"^port = (\d+)"))
    assert est
    assert mqtt
    text = text.replace(est[0], est[0].replace(est[1], mqtt[1])).replace(mqtt[0], f"port = {est[1]}")
    (home / "agent.toml").write_text(text)
    if not is_enrolled:
        (home / "current").unlink()
        shutil.rmtree(home / "slot-a")
    found = failures(home)
    assert found["est"]["detail"] == f"At the EST server 127.0.0.1:{mqtt[1]}, MQTT answers."
    assert found["est"]["advice"].startswith("Check [est] url in agent.toml; a fleet serves EST on port 8443")
    if is_enrolled:
        assert found["mqtt"]["detail"] == f"At the MQTT server 127.0.0.1:{est[1]}, HTTP answers, as on an EST port."
        assert found["mqtt"]["advice"].startswith("Check [mqtt] port in agent.toml; a fleet serves MQTT on port 8883")
    assert set(found) == ({"est", "mqtt"} if is_enrolled else {"certificate", "est"})
