"""`GET /v1/metrics` of several workers: one scrape tells of all."""

import asyncio
import re
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.wire.mqtt.codes import V5
from tests.end_to_end.workers_fixtures import TRIES_MAX, TWO, Devices, needs_mosquitto, worker_pids
from tests.serving import Served, run_fleet
from tests.waiting import PATIENCE_SECONDS, until


@pytest.fixture
def shared(home: Path, tmp_path: Path) -> Iterator[Served]:
    """Two workers."""
    serving = Served(home, tmp_path / "ready.json", TWO).start()
    yield serving
    serving.stop()


@needs_mosquitto
async def test_a_scrape_has_the_sessions_of_all_workers(devices: Devices, shared: Served, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    words = ("operator", "add", "prom", "--role", "viewer", "--password-file", str(tmp_path / "password"))
    run_fleet(shared.home, *words, "--out", str(tmp_path))
    context = ssl.create_default_context(cafile=shared.ca_file)
    context.load_cert_chain(tmp_path / "prom.pem", tmp_path / "prom.key")

    def counts(metric: str) -> dict[str, int]:
        """By worker."""
        url = f"{shared.endpoints['http']}/v1/metrics"
        with urllib.request.urlopen(url, context=context, timeout=PATIENCE_SECONDS) as answer:
            text = answer.read().decode()
        found = re.findall(rf'^{metric}\{{worker="(\w+)".*\}} (\d+)$', text, re.MULTILINE)
        return {worker: int(count) for worker, count in found}

    held = {"1": 0, "2": 0}
    for number in range(TRIES_MAX):
        _, worker = await devices.connect(await asyncio.to_thread(devices.enroll, f"counted-{number}"), V5)
        held[worker] += 1
        if all(held.values()):
            break
    await until(lambda: counts("fleet_mqtt_connections") == held)
    assert worker_pids(shared).keys() == held.keys()
    answers = await asyncio.to_thread(lambda: [counts("fleet_mqtt_connections") for _ in range(20)])
    assert all(each == held for each in answers), "whichever worker answers"
