"""`device-agent doctor`: what is wrong, and what to do about it."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click

from device_agent.cli.options import output_option, pass_home
from device_agent.config.agent_config import read_config
from device_agent.doctor.diagnosis import examine_device, is_healthy
from device_agent.log.event_log import system_clock
from device_agent.store.key_store import use_here
from fleet.config.streams import json_text, printable
from fleet.est_client.errors import ClientError


@click.command()
@output_option
@pass_home
def doctor(home: Path, output: str) -> None:
    """Find out what is wrong, and what to do: settings, permissions, disk, trust anchors, key, certificate, clock, DNS,
    TCP, TLS, and what the servers think of this device. Changes nothing, and prints no secrets.

    If no agent runs, connects once to the gateway with the current certificate; the session is kept.

    Exits 0 if nothing failed (warnings are printed), 1 if something did, 2 on wrong use.
    """
    with suppress(ClientError):  # which is a finding
        use_here(read_config(home).key_store)
    findings = examine_device(home, system_clock())
    healthy = is_healthy(findings)
    if output == "json":
        click.echo(json_text({"healthy": healthy, "findings": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            click.echo(f"{finding.state:8} {finding.check:12} {printable(finding.detail)}")
            if finding.advice:
                click.echo(f"{'':22}{printable(finding.advice)}")
    raise SystemExit(0 if healthy else 1)
