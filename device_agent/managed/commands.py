"""Commands of the fleet: a closed table, none of which runs anything of the sender's. No I/O.

The payload is a JSON object: `id`, 8 to 64 letters and digits, new for each command; `at`, when it was given, RFC 3339;
`level`, of `log-level` alone.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from device_agent.log.journal import Priority
from device_agent.packets import Received

TOPIC = "devices/{id}/fleet/agent/+"
RENEW, REPORT, TRUST_UPDATE, LOG_LEVEL = "renew", "report", "trust-update", "log-level"
NAMES = (RENEW, REPORT, TRUST_UPDATE, LOG_LEVEL)
LEVELS = {"warning": Priority.WARNING, "info": Priority.INFO, "debug": Priority.DEBUG}
PAYLOAD_SIZE_MAX = 1024  # bytes
AGE_MAX = timedelta(days=1)  # as long as the server keeps a session by default
AHEAD_MAX = timedelta(minutes=5)

_ID = re.compile(r"[A-Za-z0-9]{8,64}")


class CommandRefused(Exception):
    """The message is no command, or not one that is carried out."""


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    id: str
    at: datetime
    level: str = ""


def read_command(message: Received, now: datetime | None) -> Command:
    """The command that `message` is; `now`, None where the clock is not set, judges its age.

    Raises: CommandRefused.
    """
    name = message.topic.rsplit("/", 1)[-1]
    if name not in NAMES:
        raise CommandRefused("there is no such command")
    if message.retain:
        raise CommandRefused("it is retained: commands are given once")
    if len(message.payload) > PAYLOAD_SIZE_MAX:
        raise CommandRefused(f"it is larger than {PAYLOAD_SIZE_MAX} bytes")
    try:
        tree = json.loads(message.payload)
    except (ValueError, RecursionError):
        raise CommandRefused("its payload is not JSON") from None
    members = {"id", "at"} | ({"level"} if name == LOG_LEVEL else set())
    if not isinstance(tree, dict) or set(tree) != members or not all(isinstance(each, str) for each in tree.values()):
        raise CommandRefused(f"its payload must have exactly {', '.join(sorted(members))}, which are strings")
    if not _ID.fullmatch(tree["id"]):
        raise CommandRefused("its id is not 8 to 64 letters and digits")
    level = tree.get("level", "")
    if name == LOG_LEVEL and level not in LEVELS:
        raise CommandRefused(f"the level is none of {', '.join(LEVELS)}")
    at = _time(tree["at"])
    if now is not None and not now - AGE_MAX <= at <= now + AHEAD_MAX:
        raise CommandRefused("it is more than a day old, or from the future, by this device's clock")
    return Command(name, tree["id"], at, level)


def _time(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is not None:
            return at.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise CommandRefused("its time is not RFC 3339")
