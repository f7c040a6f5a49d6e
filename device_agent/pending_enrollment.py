"""Waiting for an operator's word: asked again with the same key, as the server says, until it has decided.

    outcome = poll_until_decided(job, said=print)

What is known of it stands in the home while it lasts, so that `status` can tell.
"""

import time
from collections.abc import Callable
from pathlib import Path

from device_agent.atomic_files import write_atomically
from device_agent.enrollment import EnrollmentJob, Outcome, enroll_and_wait

NOTE = "waiting"
NOTE_SIZE_MAX = 1000
AGAIN_SECONDS = 60.0  # after a failure that says no better


def poll_until_decided(
    job: EnrollmentJob,
    said: Callable[[str], None],
    *,
    ask: Callable[[EnrollmentJob], Outcome] = enroll_and_wait,
    pause: Callable[[float], None] = time.sleep,
) -> Outcome:
    """How it ended: with a certificate, with a no, or without the request having been taken in.

    Once it has been, a server that cannot be reached is asked again: it may be days until somebody decides.
    """
    note, taken_in, last = job.home / NOTE, False, ""
    while True:
        outcome = ask(job)
        if outcome.ok or outcome.refused or not (outcome.pending or taken_in):
            note.unlink(missing_ok=True)
            return outcome
        taken_in = True
        if outcome.message != last:  # a person reads along
            last = outcome.message
            said(last)
        if outcome.pending:
            write_atomically(note, outcome.message.encode())
        pause(outcome.retry_after_seconds or AGAIN_SECONDS)


def pending_note(home: Path) -> str:
    """What was said of the request that waits; "" when none does."""
    try:
        with (home / NOTE).open("rb") as file:
            text = file.read(NOTE_SIZE_MAX).decode("utf-8", "replace")
    except OSError:
        return ""
    return "".join(each for each in text if each.isprintable())
