"""`device-agent run`: becomes the long-lived process, `python -m device_agent.run`, by exec."""

import os
import sys
from pathlib import Path

import click

from device_agent.child_process import module_command
from device_agent.cli.options import pass_home, usage_errors
from device_agent.config.topics import topic_for


@click.command()
@click.option("--publish", metavar="TOPIC", help="Publish each line of standard input to TOPIC; {id} is the device id.")
@click.option("--stdin", is_flag=True, help="Publish standard input, in lines of `TOPIC PAYLOAD`.")
@click.option(
    "--exit-at-eof", is_flag=True, help="Exit when the input has ended and every message is delivered or refused."
)
@click.option(
    "--qos",
    type=click.IntRange(0, 1),
    default=1,
    show_default=True,
    help="QoS of the messages read from standard input.",
)
@click.option("-v", "--verbose", "least", flag_value="7", help="Log each decision, too.")
@click.option("-q", "--quiet", "least", flag_value="4", help="Log problems only.")
@pass_home
def run(home: Path, publish: str | None, stdin: bool, exit_at_eof: bool, qos: int, least: str | None) -> None:
    """Connect, publish, and renew the certificate, until SIGTERM. SIGUSR1 renews at once.

    Exits 0 if every accepted message was delivered, or is kept in the spool, else 1.
    """
    if publish is not None and stdin:
        raise click.UsageError("--publish and --stdin exclude each other.")
    if exit_at_eof and publish is None and not stdin:
        raise click.UsageError("--exit-at-eof needs --publish or --stdin.")
    if publish is not None:
        with usage_errors():
            topic_for(publish, "id")
    words = ["--home", str(home), "--qos", str(qos), "--least", least or "6"]
    words += ["--publish", publish] if publish is not None else []
    words += ["--stdin"] * stdin + ["--exit-at-eof"] * exit_at_eof
    os.execv(sys.executable, [*module_command("device_agent.run"), *words])  # noqa: S606 - no shell
