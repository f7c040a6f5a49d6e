"""Programs of another user's, as root starts them."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
_CLONE_NEWNS = 0x20000


def let_others_run_python() -> None:
    """Let every user run this interpreter, as on a usual system. This process alone is changed: it has its own mounts.

    Raises: OSError, CalledProcessError where root may not.
    """
    needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), REPOSITORY}
    closed = {each: up for each in needed for up in each.parents if not up.stat().st_mode & 0o001}  # the uppermost
    if not closed:
        return
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    _mount("--make-rprivate", "/")
    kept = {each: os.open(each, os.O_PATH) for each in closed}
    for folder in set(closed.values()):
        _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(folder))
    for each, descriptor in kept.items():
        each.mkdir(parents=True, exist_ok=True)
        _mount("--no-canonicalize", "--bind", f"/proc/{os.getpid()}/fd/{descriptor}", str(each))
        os.close(descriptor)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)
