"""Why the server refuses this device: recorded for `status`, until the device is connected."""

import contextlib
import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from device_agent.store.atomic_files import read_capped, write_atomically

FILE = "last-refusal.json"
SIZE_MAX = 16 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class LastRefusal:
    since: str
    """By this device's clock, ISO 8601."""
    message: str
    advice: str
    final: bool
    """The server refuses every credential that is left: an operator has to act."""
    code: str = ""
    """The fleet's, as device-suspended (fleet/ERRORS.md); "" if the server has not said."""


def record(home: Path, now: datetime, message: str, advice: str = "", *, final: bool = False, code: str = "") -> None:
    """Replace the record, unless it says the same, or more. On a disk that cannot be written, there is none."""
    known, refusal = read(home), LastRefusal(now.isoformat(), message, advice, final, code)
    if known is not None and (known.final > final or replace(known, since=refusal.since) == refusal):
        return
    with contextlib.suppress(OSError):
        write_atomically(home / FILE, json.dumps(asdict(refusal)).encode())


def forget(home: Path) -> None:
    with contextlib.suppress(OSError):
        (home / FILE).unlink()


def read(home: Path) -> LastRefusal | None:
    try:
        tree = json.loads(read_capped(home / FILE, SIZE_MAX))
        since, message, advice = (str(tree[name]) for name in ("since", "message", "advice"))
        return LastRefusal(since, message, advice, tree["final"] is True, str(tree.get("code", "")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
