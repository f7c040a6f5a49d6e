"""The diagnosis of a device: each check in its order, and what comes out. Changes nothing."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from device_agent.config.agent_config import FILE_NAME, read_config
from device_agent.doctor.findings import Check, Finding, Patient, State
from device_agent.doctor.local_checks import (
    anchors_are_valid,
    certificate_is_valid,
    disk_has_room,
    hooks_have_deployed,
    key_matches,
    key_store_answers,
    permissions_are_tight,
)
from device_agent.doctor.server_checks import (
    clock_is_right,
    est_answers,
    gateway_admits,
    names_resolve,
    ports_answer,
    servers_are_trusted,
)
from fleet.est_client.errors import ClientError

CHECKS: tuple[Check, ...] = (
    permissions_are_tight,
    disk_has_room,
    anchors_are_valid,
    key_store_answers,
    key_matches,
    certificate_is_valid,
    names_resolve,
    ports_answer,
    clock_is_right,
    servers_are_trusted,
    est_answers,
    gateway_admits,
    hooks_have_deployed,
)


def examine_device(home: Path, system: datetime, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """What each check finds; `system`: the system's time. A home whose settings cannot be read has this one finding."""
    try:
        patient = Patient.of(read_config(home), system)
    except ClientError as error:
        return [
            Finding("settings", State.FAILED, f"{error.message.rstrip('.')}.", error.advice or f"Mend {FILE_NAME}.")
        ]
    findings = [Finding("settings", State.OK, f"Device {patient.config.device_id}.")]
    for check in checks:
        try:
            findings += check(patient)
        except (OSError, ClientError) as error:
            name = check.__name__.replace("_", " ")
            findings.append(
                Finding("home", State.FAILED, f"Whether {name} cannot be told: {error}.", "Check the home.")
            )
    return findings


def is_healthy(findings: Sequence[Finding]) -> bool:
    """Warnings are no illness."""
    return all(finding.state is not State.FAILED for finding in findings)
