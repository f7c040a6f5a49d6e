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
    number = max(unanswered, key=unanswered.__getitem__)
    most = ALL_UNANSWERED_MAX if _none_answers(unanswered) else UNANSWERED_MAX
    return number if unanswered[number] >= most else None


def counted(before: Mapping[int, int], now: Mapping[int, int]) -> Mapping[int, int]:
    """`now`, or zeros where a worker answers again after none did: the others may be about to."""
    return dict.fromkeys(now, 0) if before and _none_answers(before) and not _none_answers(now) else now


def _none_answers(unanswered: Mapping[int, int]) -> bool:
    """Of those that all stop at once, one may have answered a ping more than another."""
    return min(unanswered.values(), default=0) >= UNANSWERED_MAX - 1
