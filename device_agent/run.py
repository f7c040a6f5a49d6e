"""`python -m device_agent.run`: the long-lived process. It loads the standard library and paho, and no more.

`device-agent run` becomes this process by exec, so that click is not kept in memory for months.
"""

import argparse
import os
from pathlib import Path

from device_agent.config.agent_config import AgentConfig, read_config
from device_agent.config.topics import topic_for
from device_agent.errors import KeyStoreLost
from device_agent.log.event_log import EventLog
from device_agent.log.journal import Priority
from device_agent.spool.line_reader import LineReader
from device_agent.spool.publisher import PublishInput
from device_agent.store.key_store import use_here
from fleet.est_client.errors import BadConfig, ClientError

try:
    from device_agent.loop.runner import Runner
except ModuleNotFoundError as error:
    raise SystemExit(
        f"Error: The Python module {error.name} is missing. Install the agent's part: pip install '.[agent]'."
    ) from error


def main() -> None:
    """Run until stopped; see `Runner.run` for the exit code."""
    stdin_is_open = _open_standard_streams()
    parser = argparse.ArgumentParser(prog="device-agent run")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--publish", metavar="TOPIC")
    parser.add_argument("--stdin", action="store_true")
    parser.add_argument("--exit-at-eof", action="store_true")
    parser.add_argument("--qos", type=int, choices=(0, 1), default=1)
    parser.add_argument("--least", type=int, choices=[*Priority], default=Priority.INFO)
    options = parser.parse_args()
    log = EventLog(least=Priority(options.least))
    try:
        config = read_config(options.home)
        use_here(config.key_store)
        code = Runner(config, log, _input(options, config, stdin_is_open)).run()
    except (ClientError, KeyStoreLost, OSError) as error:
        advice = getattr(error, "advice", "")
        log.line(f"Error: {error}{' ' + advice if advice else ''}")
        raise SystemExit(1) from None
    raise SystemExit(code)


def _input(options: argparse.Namespace, config: AgentConfig, stdin_is_open: bool) -> PublishInput | None:
    if options.publish is None and not options.stdin:
        return None
    if not stdin_is_open:
        raise BadConfig("Standard input is closed.", "Leave out --publish and --stdin, or pass an input.")
    topic = topic_for(options.publish, config.device_id) if options.publish is not None else None
    return PublishInput(LineReader(0), topic, options.qos, options.exit_at_eof)


def _open_standard_streams() -> bool:
    """Open /dev/null for closed standard streams, so that no socket gets their number. Whether stdin was open."""
    is_open = []
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
            is_open.append(True)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: `descriptor`
            is_open.append(False)
    return is_open[0]


if __name__ == "__main__":
    main()
