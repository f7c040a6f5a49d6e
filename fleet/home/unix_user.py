"""The Unix user at a home, as the actor of audit rows."""

import os
import pwd
from datetime import UTC, datetime

from fleet.domain.access import Act

NAME_SIZE_MAX = 64


def unix_user() -> str:
    """The effective user in the audit's words, of characters that are safe there."""
    user_id = os.geteuid()
    try:
        name = pwd.getpwuid(user_id).pw_name
    except KeyError:
        return f"uid {user_id}"
    return "user " + "".join(c if c.isascii() and (c.isalnum() or c in "._-@$") else "?" for c in name)[:NAME_SIZE_MAX]


def act_now() -> Act:
    """A change made now by the user of this machine."""
    return Act(unix_user(), datetime.now(UTC))
