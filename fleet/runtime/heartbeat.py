"""Which worker to replace because it no longer answers, by the pings that it has left unanswered.

Pings are counted, not seconds: after a pause of the whole machine, or of the supervisor, each worker has missed one at
the most, and answers the next. One worker is replaced at a time.
"""

from collections.abc import Mapping

PING_SECONDS = 1.0
UNANSWERED_MAX = 4  # in a row, while another worker answers: the fault is the worker's
ALL_UNANSWERED_MAX = 20  # while none does: more likely a machine without a processor or disk to spare


def silent_worker(unanswered: Mapping[int, int]) -> int | None:
    """The worker to replace, of those that listen: number -> pings in a row without an answer."""
    if not unanswered:
        return None
    others_answer = any(count < UNANSWERED_MAX for count in unanswered.values())
    number = max(unanswered, key=unanswered.__getitem__)
    return number if unanswered[number] >= (UNANSWERED_MAX if others_answer else ALL_UNANSWERED_MAX) else None
