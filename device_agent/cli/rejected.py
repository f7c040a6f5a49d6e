"""`device-agent rejected`: the messages that the server has refused."""

import json
import time
from pathlib import Path
from typing import Any

import click

from device_agent.apps.control import ask
from device_agent.cli.options import output_option, pass_home
from device_agent.config.agent_config import AgentConfig, read_config
from device_agent.errors import AgentError, NotRunning
from device_agent.link.clock import device_clock
from device_agent.log.event_log import EventLog
from device_agent.spool.outbox import act_on_rejected
from device_agent.spool.spool import Spool
from device_agent.store.atomic_files import held_lock
from device_agent.store.locks import AGENT_LOCK
from fleet.config.streams import text_of

ASK_SECONDS_MAX = 10.0


@click.command()
@output_option
@click.option("--retry", is_flag=True, help="Queue all of them again.")
@click.option("--drop", is_flag=True, help="Forget all of them.")
@pass_home
def rejected(home: Path, output: str, retry: bool, drop: bool) -> None:
    """Show the messages that the server has refused: when, topic, size and reason.

    The newest 100 are kept: with the spool on, even when the agent has ended.
    """
    if retry and drop:
        raise click.UsageError("--retry and --drop exclude each other.")
    act = "retry" if retry else "drop" if drop else None
    config = read_config(home)
    try:
        answer = ask(home, {"do": "rejected", "act": act}, ASK_SECONDS_MAX)
    except NotRunning:
        if not config.spool.enabled:
            raise
        answer = _ask_the_file(config, act)
    if act is not None:
        click.echo(f"{'Queued again' if retry else 'Forgotten'}: {answer['count']}.")
    elif output == "json":
        click.echo(json.dumps(answer["rejected"]))
    else:
        for entry in answer["rejected"]:
            time_, topic, reason = (text_of(entry[key]) for key in ("time", "topic", "reason"))
            click.echo(f"{time_}  {topic}  {entry['size']} bytes: {reason}")


def _ask_the_file(config: AgentConfig, act: str | None) -> dict[str, Any]:
    with held_lock(config.home / AGENT_LOCK, "An agent is starting in this home.", "Try again."):
        spool = Spool(config, EventLog(), device_clock(config.home).reading, time.monotonic)
        spool.open()
        answer = act_on_rejected(spool.outbox, act)
        spool.close()
        if spool.database is not None and spool.database.problem:
            raise AgentError(f"{spool.database.problem}.")
    return answer
