"""Metrics in the text format of Prometheus (0.0.4): what each worker has counted, and how the broker and the CRLs are.

A scrape reaches one worker, and its answer is about all: each has told the others, within two seconds.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct

MEDIA_TYPE = "text/plain"  # without a version it is 0.0.4

METRICS = {
    "fleet_outcomes_total": "outcomes by `part` (`mqtt`, `est`, `http`, …) and `outcome`, as the status counts them",
    "fleet_mqtt_connections": "open MQTT connections, those not admitted yet included",
    "fleet_tls_handshaking": "connections in a TLS handshake, by `listener`",
    "fleet_tls_connected": "connections with a complete handshake, by `listener`",
    "fleet_tls_accepted_total": "connections accepted, by `listener`",
    "fleet_tls_established_total": "handshakes completed, by `listener`",
    "fleet_tls_refused_total": "connections refused before or in the handshake, by `listener` and `code`",
    "fleet_descriptors_taken": "file descriptors that connections have",
    "fleet_descriptors_max": "file descriptors that connections may have",
    "fleet_broker_answers": "1 while the broker answers, else 0",
    "fleet_broker_saves": "1 while our own broker can save what it holds, else 0; has no worker",
    "fleet_workers": "workers that there should be; has no worker",
    "fleet_worker_restarts_total": "workers that ended and were started again; has no worker",
    "fleet_requests_pending": "enrollment requests that wait for approval; has no worker",
    "fleet_crls_published": "CRLs of the CAs in this home; has no worker",
    "fleet_crls_next_update_seconds": "seconds until the first nextUpdate of a CRL; has no worker",
    "fleet_crls_late": "CRLs that were to be signed again long ago; has no worker",
    "fleet_crls_unlisted": "revocations that no CRL has yet; has no worker",
}
"""Metric -> what it is. Each has the label `worker`, unless it says otherwise; it counts up if it ends in `_total`."""


class Sample(Struct, frozen=True):
    name: str
    value: float
    labels: Mapping[str, str]


def of_worker(number: str, counted: Mapping[str, Any]) -> Iterator[Sample]:
    """What the worker `number` counts: `counted` is JSON's own types."""
    worker = {"worker": number}
    yield from outcomes(number, counted["outcomes"])
    yield Sample("fleet_mqtt_connections", counted["sessions"], worker)
    yield Sample("fleet_broker_answers", counted["broker_answers"], worker)
    for name in ("taken", "max"):
        yield Sample(f"fleet_descriptors_{name}", counted["descriptors"][name], worker)
    for listener, stats in counted["tls"].items():
        at = {**worker, "listener": listener}
        yield Sample("fleet_tls_handshaking", stats["handshaking"], at)
        yield Sample("fleet_tls_connected", stats["connected"], at)
        yield Sample("fleet_tls_accepted_total", stats["accepted"], at)
        yield Sample("fleet_tls_established_total", stats["established"], at)
        for code, count in stats["refused"].items():
            yield Sample("fleet_tls_refused_total", count, {**at, "code": code})


def outcomes(number: str, parts: Mapping[str, Mapping[str, int]]) -> Iterator[Sample]:
    """Of the worker `number`, or of "supervisor"."""
    for part, counts in parts.items():
        for outcome, count in counts.items():
            yield Sample("fleet_outcomes_total", count, {"worker": number, "part": part, "outcome": outcome})


def exposition(samples: Iterable[Sample]) -> bytes:
    """Metrics in the order of METRICS, each behind its help and type."""
    lines: dict[str, list[str]] = {name: [] for name in METRICS}
    for sample in samples:
        labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels.items())
        lines[sample.name].append(f"{sample.name}{f'{{{labels}}}' if labels else ''} {float(sample.value):.15g}\n")
    found = []
    for name, each in lines.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        if each:
            found += [f"# HELP {name} {METRICS[name]}\n# TYPE {name} {kind}\n", *each]
    return "".join(found).encode()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
