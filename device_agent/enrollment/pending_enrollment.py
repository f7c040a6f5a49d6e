"""Pending enrollment: polls with the same key, as often as the server says, until an operator has decided.

    outcome = poll_until_decided(job, report=print)

A note in the home lets `status` show it meanwhile.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from device_agent.enrollment.enrollment import EnrollmentJob, Outcome, enroll_and_wait
from device_agent.store.atomic_files import opened_file, write_atomically

NOTE = "waiting"
LABEL = "waiting-model"
NOTE_SIZE_MAX = 1000
AGAIN_SECONDS = 60.0  # after a failure without Retry-After


def poll_until_decided(
    job: EnrollmentJob,
    report: Callable[[str], None],
    *,
    ask: Callable[[EnrollmentJob], Outcome] = enroll_and_wait,
    pause: Callable[[float], None] = time.sleep,
) -> Outcome:
    """The final outcome: a certificate, a refusal, or a failure before the request was accepted.

    Once it is accepted, polling continues while the server is unreachable: a decision may take days.
    """
    note, label, accepted, last = job.home / NOTE, job.home / LABEL, False, ""
    if not job.label and (known := _read(label)):
        job = replace(job, label=known)  # as it was named before an interruption
    while True:
        outcome = ask(job)
        if outcome.ok or outcome.refused or not (outcome.pending or accepted):
            note.unlink(missing_ok=True)
            label.unlink(missing_ok=True)
            return outcome
        accepted = True
        if outcome.message != last:  # printed for a person: not repeated
            last = outcome.message
            report(last)
        if outcome.pending:
            write_atomically(note, outcome.message.encode())
            write_atomically(label, job.label.encode())
        pause(outcome.retry_after_seconds or AGAIN_SECONDS)


def pending_note(home: Path) -> str:
    """The message of the pending request; "" if there is none."""
    return _read(home / NOTE)


def _read(file: Path) -> str:
    try:
        with opened_file(file) as opened:
            text = opened.read(NOTE_SIZE_MAX).decode("utf-8", "replace")
    except OSError:
        return ""
    return "".join(each for each in text if each.isprintable())
