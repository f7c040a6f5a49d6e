"""Main loop of a driver process: one JSON object per line in, one out.

    in   {"do": "run", "seconds": 3.0, ...}
    out  {"operations": 5120, ...}   or   {"error": "what went wrong"}

A driver writes {"ready": true} when prepared. It ends when its standard input is closed.
"""

import gc
import json
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

Command = Mapping[str, Any]
Handler = Callable[[Command], dict[str, Any]]


def serve(prepare: Callable[[Command], Mapping[str, Handler]]) -> None:
    """Read the configuration, prepare, then dispatch each command to the handler that its "do" names, until EOF."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and closes the pipe
    handlers = prepare(json.loads(sys.stdin.readline()))
    # Garbage collection would add pauses of the driver to the figures; what a turn allocates is small.
    gc.collect()
    gc.freeze()
    gc.disable()
    _write({"ready": True})
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = handlers[command["do"]](command)
        except Exception as error:  # the parent turns it into its own error and ends the run
            answer = {"error": f"{type(error).__name__}: {error}"}
        _write(answer)
        gc.collect()


def _write(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
