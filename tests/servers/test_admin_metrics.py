"""Metrics: the text format of Prometheus, of all workers."""

import re
from pathlib import Path

import pytest

from fleet.config.settings import Settings
from fleet.domain.access import Role
from fleet.runtime.supervision import Alone
from fleet.servers.admin.metrics import METRICS, Sample, exposition, of_worker
from tests.servers.admin_fixtures import open_admin

LINE = re.compile(r'[a-z_]+(\{([a-z]+="([^"\\\n]|\\[\\"n])*",?)+\})? -?[0-9.e+]+')
README = Path(__file__).parents[2] / "fleet/servers/admin/README.md"
COUNTED = {
    "tls": {"mqtt": {"handshaking": 1, "connected": 7, "accepted": 12, "established": 11, "refused": {"timeout": 2}}},
    "descriptors": {"limit": 1024, "max": 700, "taken": 9, "sessions_max": 300},
    "outcomes": {"mqtt": {"mqtt.connect.ok": 8}, "est": {"200": 3, "403 not-for-you": 1}},
    "sessions": 7,
    "broker_answers": True,
}


def test_what_a_worker_counts_has_its_number() -> None:
    text = exposition([*of_worker("1", COUNTED), *of_worker("2", {**COUNTED, "sessions": 0})]).decode()
    lines = text.splitlines()
    assert 'fleet_outcomes_total{worker="1",part="mqtt",outcome="mqtt.connect.ok"} 8' in lines
    assert 'fleet_mqtt_connections{worker="2"} 0' in lines
    assert 'fleet_tls_refused_total{worker="1",listener="mqtt",code="timeout"} 2' in lines
    assert 'fleet_broker_answers{worker="1"} 1' in lines
    assert lines.count("# TYPE fleet_tls_accepted_total counter") == 1, "samples of a metric are together"
    assert "# TYPE fleet_mqtt_connections gauge" in lines
    assert all(line.startswith("# ") or LINE.fullmatch(line) for line in lines)


def test_labels_are_escaped_and_large_counts_are_exact() -> None:
    text = exposition([Sample("fleet_workers", 123456789012, {"code": 'a "b"\\\nc'})]).decode()
    assert text.splitlines()[-1] == 'fleet_workers{code="a \\"b\\"\\\\\\nc"} 123456789012'


async def test_a_scrape_gets_text_whatever_prometheus_prefers(tmp_path: Path) -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    async with open_admin(tmp_path) as api:
        viewer = await api.operator("prom", Role.VIEWER)
        answer = await viewer.send("GET", "/v1/metrics", headers={"Accept": accept})
        assert answer.status == 200
        assert "\r\nContent-Type: text/plain\r\n" in answer.head + "\r\n"
        assert b"\nfleet_requests_pending " in answer.body
        assert b"fleet_workers" not in answer.body, "nobody has said yet how many there are"


def test_a_worker_without_a_supervisor_is_the_only_one() -> None:
    assert Alone(Settings).workers == {"count": 1, "restarts": 0}


def test_the_page_names_every_metric() -> None:
    rows = re.findall(r"^\| `(fleet_\w+)` \| (.*) \|$", README.read_text(), re.MULTILINE)
    assert dict(rows) == METRICS


async def test_scrapes_are_one_line_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with open_admin(tmp_path) as api:
        viewer = await api.operator("prom", Role.VIEWER)
        for _ in range(3):
            assert (await viewer.send("GET", "/v1/metrics")).status == 200
    assert sum("event=admin.metrics" in record.getMessage() for record in caplog.records) == 1
