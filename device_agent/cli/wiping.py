"""Wiping a home, so that the device can be given away: keys and certificates first, then everything else.

Nothing needs to be listed here when the home gets another file: all goes but what is kept by name. A wipe that was cut
off is finished by the next one.
"""

import contextlib
import errno
import os
import signal
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from device_agent.apps.control import Conversation
from device_agent.config.agent_config import CA_NAME, FILE_NAME, AgentConfig
from device_agent.config.hooks import SECRET, Copy
from device_agent.errors import AgentError, NotRunning
from device_agent.hooks.copies import opened_folder_of
from device_agent.store.atomic_files import Checkpoint, held_lock, no_checkpoint, sync_directory
from device_agent.store.identity_store import SLOTS
from device_agent.store.locks import AGENT_LOCK, HOOKS_LOCK, SLOTS_LOCK
from fleet.est_client.errors import BadConfig

LOCKS = (AGENT_LOCK, SLOTS_LOCK, HOOKS_LOCK)
ASK_SECONDS_MAX = 5.0
STOP_SECONDS_MAX = 20.0
CHILD_SECONDS_MAX = 10.0  # an enrollment or a hook of an agent that has just stopped
_CHUNK_SIZE = 65536


@contextlib.contextmanager
def exclusive(home: Path, *, stop: bool) -> Iterator[None]:
    """Hold every lock of `home` while the block runs. With `stop`, a running agent is asked to stop, by SIGTERM.

    Raises: AgentError, of which Busy; OSError.
    """
    seconds = 0.0
    if stop:
        with contextlib.suppress(NotRunning, ProcessLookupError, TimeoutError):
            with Conversation(home, ASK_SECONDS_MAX) as conversation:
                os.kill(conversation.peer_pid, signal.SIGTERM)
            seconds = STOP_SECONDS_MAX
    busy = "An agent is running in this home."
    advice = "Stop it, as with systemctl stop device-agent, or pass --stop."
    with held_lock(home / AGENT_LOCK, busy, advice, seconds), contextlib.ExitStack() as locks:
        for name in LOCKS[1:]:
            busy, advice = "Another process works in this home.", "Wait for it to finish."
            locks.enter_context(held_lock(home / name, busy, advice, CHILD_SECONDS_MAX))
        yield


def check_home(home: Path) -> None:
    """Refuse a directory that is no device's home. What a wipe with `settings` left, when it was cut off, is one.

    Raises: BadConfig.
    """
    if not home.is_dir() or (
        not (home / FILE_NAME).exists() and not {each.name for each in home.iterdir()} <= set(LOCKS)
    ):
        raise BadConfig(f"{home} is not a device's home: it has no {FILE_NAME}.", "Nothing was changed.")


def wipe(home: Path, *, settings: bool = False, checkpoint: Checkpoint = no_checkpoint) -> None:
    """Erase everything in `home` but agent.toml, ca.pem and the locks; with `settings` those, and the home itself, too.

    The locks are the caller's to hold. Raises: OSError.
    """
    keys = [home / slot / "key.pem" for slot in SLOTS if not (home / slot).is_symlink()]
    for path in [*keys, *_files(home / slot for slot in SLOTS), *_files(home.iterdir())]:
        if path.parent != home or path.name not in (FILE_NAME, CA_NAME, *LOCKS):
            erase(path)
            checkpoint(f"{path.relative_to(home)} erased")
    for folder in sorted((each for each in home.rglob("*") if _is_folder(each)), reverse=True):
        folder.rmdir()
        checkpoint(f"{folder.relative_to(home)} removed")
    sync_directory(home)
    if not settings:
        return
    for name in (CA_NAME, FILE_NAME, *LOCKS):  # while there is agent.toml, this is a home
        erase(home / name)
        checkpoint(f"{name} erased")
    try:
        home.rmdir()
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EACCES, errno.EPERM):  # a mount point, or another's folder
            raise


def wipe_copies(config: AgentConfig, checkpoint: Checkpoint = no_checkpoint) -> tuple[list[Path], list[Path]]:
    """Erase what hooks have copied elsewhere. The files that had the key; those that this user may not erase.

    Raises: OSError.
    """
    erased, left = [], []
    for copy in (copy for hook in config.hooks for copy in hook.copies):
        try:
            if erase_copy(copy):
                erased += [copy.to] if copy.content in SECRET else []
                checkpoint(f"{copy.to} erased")
        except NotADirectoryError:
            continue
        except (PermissionError, AgentError):
            left.append(copy.to)
    return erased, left


def erase(path: Path) -> bool:
    """Overwrite the content of a regular file that has no other name, and remove it. False if there is nothing.

    On flash, and on file systems that write elsewhere, the overwritten content remains until its block is reused.

    Raises: OSError.
    """
    return _erased(lambda: os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), path.name)


def erase_copy(copy: Copy) -> bool:
    """`erase` for what a hook has copied. Raises: AgentError if another user has a part in the way to it; OSError."""
    return _erased(lambda: opened_folder_of(copy), copy.to.name)


def _erased(open_folder: Callable[[], int], name: str) -> bool:
    try:
        folder = open_folder()
    except FileNotFoundError:
        return False
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISREG(found.st_mode):
            with contextlib.suppress(PermissionError):
                _overwrite(name, folder)
        os.unlink(name, dir_fd=folder)
        sync_directory(Path(f"/proc/self/fd/{folder}"))
    except FileNotFoundError:
        return False
    finally:
        os.close(folder)
    return True


def _overwrite(name: str, folder: int) -> None:
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=folder), "wb", buffering=0) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            return
        end = 0
        while end < found.st_size:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # holes alone are left, and the disk is not filled with them
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            file.seek(begin)
            for chunk in range(begin, end, _CHUNK_SIZE):
                file.write(bytes(min(_CHUNK_SIZE, end - chunk)))
        os.fsync(file.fileno())


def _files(places: Iterable[Path]) -> Iterator[Path]:
    """All that is no directory, below `places`; links are not followed."""
    for place in places:
        if not _is_folder(place):
            yield place
            continue
        yield from _files(sorted(place.iterdir()))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def expected_answer(home: Path, config: AgentConfig | None) -> str:
    """What a person types to confirm: the device id, or the name of a home whose settings cannot be read."""
    return config.device_id if config is not None else home.name


def check_answer(answer: str, expected: str) -> None:
    """Raises: AgentError."""
    if answer.strip() != expected:
        raise AgentError("That is not it. Nothing was erased.")
