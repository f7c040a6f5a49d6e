"""Report of this device's health, signed and sent: work of the short-lived child. Needs `cryptography`."""

import json
import platform
import ssl
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cryptography import x509

from device_agent.config.agent_config import AgentConfig, read_config
from device_agent.doctor.health import examine
from device_agent.enrollment.enrollment import EnrollmentJob, Outcome
from device_agent.enrollment.trust_updates import follow_trust
from device_agent.errors import NotEnrolled
from device_agent.link.clock import DeviceClock
from device_agent.link.est_access import first_to_answer
from device_agent.managed.commands import TRUST_UPDATE
from device_agent.store.atomic_files import read_file
from device_agent.store.device_key import load_key
from device_agent.store.identity_store import Identity, IdentityStore
from device_agent.store.root_rollover import load_anchors
from fleet.est_client.client import EstClient, Policy
from fleet.est_client.errors import ClientError
from fleet.wire.device_report import sign_report
from fleet.wire.errors import WireError
from fleet.wire.trust_update import key_name

TEXT_MAX = 300  # characters of each text
ITEMS_MAX = 32  # of each list and table
LOCK_SECONDS_MAX = 20.0


def send_report(job: EnrollmentJob) -> Outcome:
    """Carry out what the command leaves to a child, and send the report that answers it.

    Raises: EstError, NotEnrolled, BadConfig, StoreDamaged.
    """
    config = read_config(job.home)
    store = IdentityStore(job.home)
    current = store.current()
    if current is None:
        raise NotEnrolled("There is no certificate to report with.", "Enroll first: device-agent enroll.")
    clock = DeviceClock(job.home, lambda: datetime.now(UTC))
    clock.own_begin = current.lifetime.not_before
    seconds = job.deadline_seconds / (3 * len(config.est_urls))

    def client_of(url: str) -> EstClient:
        check_time, at = clock.judges_dates()
        policy = Policy(seconds, patience_seconds=0, check_time=check_time, at=at, pins=config.pins)
        return EstClient(url, config.ca_file, certificate=current.files, policy=policy)

    command: dict[str, str] = json.loads(job.answers)
    if command["name"] == TRUST_UPDATE:
        command["outcome"] = _update_trust(store, config, clock, client_of, current) or command["outcome"]
    report = _cut(_report_of(config, clock) | {"command": command})
    try:
        data = sign_report(report, load_key(current.key_file, config.key_store))
    except WireError as error:
        return Outcome(ok=False, message=str(error))
    first_to_answer(config, clock, client_of, lambda client: client.device_report(data))
    return Outcome(ok=True)


def _update_trust(
    store: IdentityStore, config: AgentConfig, clock: DeviceClock, client_of: Any, current: Identity
) -> str:
    """Why it failed, or ""."""
    try:
        with store.lock(LOCK_SECONDS_MAX):
            _, client, authorities = first_to_answer(config, clock, client_of, lambda client: client.cacerts())
            chain = x509.load_pem_x509_certificates(read_file(current.certificate_file))
            return follow_trust(config, client, authorities, chain, clock.now())
    except ClientError as error:
        return error.message
    except (OSError, ValueError) as error:
        return f"The trust anchors could not be changed: {error}."


def _report_of(config: AgentConfig, clock: DeviceClock) -> dict[str, Any]:
    reading = clock.reading()
    return asdict(examine(config, reading.now)) | {
        "at": reading.now.isoformat(),
        "anchors": [key_name(each) for each in load_anchors(config.ca_file)],
        "clock": {"is_set": reading.is_set, "skew_seconds": round(clock.skew_seconds(), 3)},
        "versions": {
            "agent": _own_version(),
            "python": platform.python_version(),
            "openssl": ssl.OPENSSL_VERSION,
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        },
    }


def _own_version() -> str:
    try:
        return version("fleet-front-door")
    except PackageNotFoundError:  # run from a checkout
        return ""


def _cut(value: Any) -> Any:
    """`value` with texts, lists and tables cut to what a report may hold."""
    if isinstance(value, str):
        return value[:TEXT_MAX]
    if isinstance(value, Mapping):
        return {str(key)[:TEXT_MAX]: _cut(item) for key, item in list(value.items())[:ITEMS_MAX]}
    if isinstance(value, list | tuple):
        return [_cut(item) for item in value[:ITEMS_MAX]]
    return value
