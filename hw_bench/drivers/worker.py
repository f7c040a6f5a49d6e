"""The driver's side of the pipe: one JSON object a line in, one out.

    in   {"do": "run", "seconds": 3.0, ...}
    out  {"operations": 5120, ...}   or   {"error": "what went wrong"}

A driver says {"ready": true} when it has prepared itself. Closing its standard input ends it.
"""

import gc
import json
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

Order = Mapping[str, Any]
Act = Callable[[Order], dict[str, Any]]


def serve(prepare: Callable[[Order], Mapping[str, Act]]) -> None:
    """Read the configuration, prepare, then obey each order by the act that its "do" names, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it closes the pipe
    acts = prepare(json.loads(sys.stdin.readline()))
    # A generator that pauses for garbage measures its own pauses; what it allocates a turn is small.
    gc.collect()
    gc.freeze()
    gc.disable()
    _say({"ready": True})
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = acts[order["do"]](order)
        except Exception as error:  # the parent turns it into its own error and ends the run
            answer = {"error": f"{type(error).__name__}: {error}"}
        _say(answer)
        gc.collect()


def _say(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
