"""`python -m device_agent.run`: the long-lived process. It loads the standard library and paho, and no more.

`device-agent run` turns into this by exec, so that click is not carried along for months.
"""

import argparse
import sys
from pathlib import Path

from device_agent.agent_config import read_config
from device_agent.event_log import EventLog
from device_agent.line_reader import LineReader
from device_agent.outbox import topic_for
from device_agent.publisher import Feed
from fleet.est_client.errors import ClientError

try:
    from device_agent.runner import Runner
except ModuleNotFoundError as error:
    raise SystemExit(
        f"Error: The Python module {error.name} is missing. Install the agent's part: pip install '.[agent]'."
    ) from error


def main() -> None:
    """Run until told to stop; see `Runner.run` for the exit code."""
    parser = argparse.ArgumentParser(prog="device-agent run")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--publish", metavar="TOPIC")
    parser.add_argument("--stdin", action="store_true")
    parser.add_argument("--exit-at-eof", action="store_true")
    parser.add_argument("--qos", type=int, choices=(0, 1), default=1)
    options = parser.parse_args()
    try:
        config = read_config(options.home)
        feed = None
        if options.publish is not None or options.stdin:
            topic = topic_for(options.publish, config.device_id) if options.publish is not None else None
            feed = Feed(LineReader(sys.stdin.fileno()), topic, options.qos, options.exit_at_eof)
        code = Runner(config, EventLog(), feed).run()
    except (ClientError, OSError) as error:
        advice = getattr(error, "advice", "")
        print(f"Error: {error}{' ' + advice if advice else ''}", file=sys.stderr)
        raise SystemExit(1) from None
    raise SystemExit(code)


if __name__ == "__main__":
    main()
