"""Shares of what all programs have together: one user's programs leave some to the others'."""

import os


def is_owner(uid: int) -> bool:
    """Whether it is root, or the user that the agent runs as: they may use up what there is."""
    return uid in (0, os.geteuid())


def is_within_share(uid: int, most: int, used: int, mine: int, more: int = 1) -> bool:
    """Whether `uid`, which has `mine` of the `used` ones, keeps to its share of `most` with `more`. A user other than
    the owner may have half of what the others leave."""
    return is_owner(uid) or mine + more <= (most - (used - mine)) // 2


def has_share(uid: int, most: int, used: int, mine: int, more: int = 1) -> bool:
    """The same, where `most` is a bound that nothing gives way at."""
    return used + more <= most and is_within_share(uid, most, used, mine, more)
