"""Shares of what all programs have together: one user's programs leave some to the others'."""

import os


def is_owner(uid: int) -> bool:
    """Whether it is root, or the user that the agent runs as: they may use up what there is."""
    return uid in (0, os.geteuid())


def has_share(uid: int, most: int, used: int, mine: int, more: int = 1) -> bool:
    """Whether `uid`, which has `mine` of the `used` ones, may have `more`, of `most` in all. A user other than the
    owner may have half of what the others leave."""
    share = most if is_owner(uid) else (most - (used - mine)) // 2
    return used + more <= most and mine + more <= share
