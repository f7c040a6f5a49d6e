"""Which certificate each hook has deployed: `hooks.json` in the home, written before and after each run.

A run that was cut off, by SIGKILL or a power loss, has the mark of before: it counts as a failure and runs again.
"""

import enum
import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from device_agent.config.hooks import RETRY_SECONDS_MAX, Hook
from device_agent.store.atomic_files import read_capped, write_atomically
from device_agent.times import logged, shown

FILE_NAME = "hooks.json"
FILE_SIZE_MAX = 64 * 1024  # bytes
MESSAGE_CHARACTERS_MAX = 300
CUT_OFF = "it was cut off"


@dataclass(frozen=True, slots=True)
class Mark:
    """`fingerprint` is of the certificate; `digest` of the hook as it was."""

    fingerprint: str
    digest: str
    ok: bool = False
    message: str = CUT_OFF
    failures: int = 0
    """In a row, of this certificate and hook."""
    at: str = ""
    """ISO 8601, by the device's clock."""

    def is_of(self, hook: Hook, fingerprint: str) -> bool:
        return self.fingerprint == fingerprint and self.digest == hook.digest


Marks = dict[str, Mark]
"""By the hook's name."""


def read_marks(home: Path) -> Marks:
    """The marks in `home`; none if the file is missing or damaged: then every hook runs again."""
    try:
        tree = json.loads(read_capped(home / FILE_NAME, FILE_SIZE_MAX))
        return {str(name): _mark(each) for name, each in tree.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def write_marks(home: Path, marks: Marks) -> None:
    """Raises: OSError."""
    write_atomically(home / FILE_NAME, json.dumps({name: asdict(mark) for name, mark in marks.items()}).encode())


def is_due(hook: Hook, marks: Marks, fingerprint: str) -> bool:
    """Whether `hook` has not deployed this certificate yet."""
    mark = marks.get(hook.name)
    return mark is None or not mark.ok or not mark.is_of(hook, fingerprint)


def failures_of(hook: Hook, marks: Marks, fingerprint: str) -> int:
    mark = marks.get(hook.name)
    return mark.failures if mark is not None and mark.is_of(hook, fingerprint) and not mark.ok else 0


def retry_delay_seconds(hook: Hook, failures: int, chance: float) -> float:
    """How long after so many failures; `chance` in [0, 1) takes away up to a half."""
    if not failures:
        return 0.0
    return min(RETRY_SECONDS_MAX, hook.retry_seconds * 2.0 ** min(failures - 1, 16)) * (1 - chance / 2)


def begun(hook: Hook, marks: Marks, fingerprint: str, now: datetime) -> Mark:
    """The mark of a run that begins."""
    failures = failures_of(hook, marks, fingerprint) + 1
    return Mark(fingerprint, hook.digest, failures=failures, at=logged(now))


def ended(mark: Mark, problem: str) -> Mark:
    """The mark of the same run, once it has ended; `problem` is "" if it is done."""
    text = "".join(each if each.isprintable() else " " for each in problem)[:MESSAGE_CHARACTERS_MAX]
    return replace(mark, ok=not problem, message=text, failures=mark.failures if problem else 0)


class HookState(enum.Enum):
    """What a hook has done with a certificate."""

    WAITING = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()


def state_of(hook: Hook, marks: Marks, fingerprint: str | None) -> tuple[HookState, str]:
    """What `hook` has done with this certificate; the same for a person: when, or what failed and how often."""
    mark = marks.get(hook.name)
    if fingerprint is None or mark is None or not mark.is_of(hook, fingerprint):
        return HookState.WAITING, "waiting"
    if mark.ok:
        return HookState.DONE, f"done at {_shown(mark.at)}"
    return HookState.FAILED, f"failed, {mark.failures} in a row: {mark.message}"


def _shown(at: str) -> str:
    try:
        return shown(datetime.fromisoformat(at))
    except ValueError:
        return at


def hook_states(hooks: tuple[Hook, ...], marks: Marks, fingerprint: str | None) -> dict[str, str]:
    """For `status`, by the hook's name."""
    return {hook.name: state_of(hook, marks, fingerprint)[1] for hook in hooks}


def _mark(tree: dict[str, object]) -> Mark:
    failures = tree["failures"]
    if not isinstance(failures, int) or failures < 0:
        raise ValueError("not a count")
    return Mark(
        str(tree["fingerprint"]),
        str(tree["digest"]),
        tree["ok"] is True,
        str(tree["message"]),
        failures,
        str(tree["at"]),
    )
