"""Copies of the identity for other programs: in their form, with owner and mode, replaced atomically.

Needs `cryptography`, so the child process that deploys imports it.
"""

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Collection
from pathlib import Path

from cryptography import x509

from device_agent.config.agent_config import AgentConfig
from device_agent.config.hooks import ROOT_ADVICE, SECRET, Copy
from device_agent.errors import AgentError, KeyStoreFailed
from device_agent.store.atomic_files import opened_file, read_file, sync_directory, write_durably
from device_agent.store.device_key import load_key
from device_agent.store.folders import opened_folder
from device_agent.store.hardware_key import EXPORT_ADVICE, NOT_EXPORTED
from device_agent.store.identity_store import Identity
from device_agent.store.key_store import FILE
from device_agent.store.root_rollover import load_anchors
from fleet.wire.encodings.bundle import Bundle, Form
from fleet.wire.encodings.writing import write

PASSWORD_SIZE_MAX = 1024  # bytes
_DRAFT = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def content_of(copy: Copy, identity: Identity, config: AgentConfig) -> bytes:
    """What `copy` holds, in its form. Raises: ClientError, WireError, ValueError, OSError."""
    certificates = tuple(x509.load_pem_x509_certificates(read_file(identity.certificate_file)))
    parts = {
        "certificate": certificates[:1],
        "issuers": certificates[1:],
        "chain": certificates,
        "pair": certificates,
        "key": (),
        "anchors": tuple(load_anchors(config.ca_file)) if copy.content == "anchors" else (),
    }
    if copy.content == "issuers" and not parts["issuers"]:
        raise AgentError("the certificate has no issuers but the root")
    if copy.content in SECRET and config.key_store.kind != FILE:
        raise KeyStoreFailed(NOT_EXPORTED, EXPORT_ADVICE)
    key = load_key(identity.key_file) if copy.content in SECRET else None
    password = None
    if copy.password_file is not None:
        password = _password(copy.password_file)
    return write(Bundle(parts[copy.content], key), Form(copy.form), password)


def place(copy: Copy, data: bytes, below: Path = Path("/"), users: Collection[int] = ()) -> bool:
    """Replace the file at `copy.to`, atomically and durably; False if it is there already, as it should be.

    Its folder is opened once, and none but the copy's owner and `users` may have a part in the way from `below` on.

    Raises: AgentError, OSError; the old file is unchanged then.
    """
    owner, group = _number(copy.owner, "user"), _number(copy.group, "group")
    folder = opened_folder(copy.to.parent, below, {0, os.geteuid(), owner, *users})
    try:
        if _is_there(copy, data, folder, (owner, group)):
            return False
        draft = f".{copy.to.name}.device"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=folder)
        try:
            _write_draft(copy, data, os.open(draft, _DRAFT, 0o600, dir_fd=folder), (owner, group))
            os.rename(draft, copy.to.name, src_dir_fd=folder, dst_dir_fd=folder)
        except (OSError, AgentError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=folder)
            raise
        sync_directory(Path(f"/proc/self/fd/{folder}"))
    finally:
        os.close(folder)
    return True


def _write_draft(copy: Copy, data: bytes, descriptor: int, whose: tuple[int, int]) -> None:
    try:
        write_durably(descriptor, data, copy.to)
        if whose != (-1, -1):
            _give(descriptor, *whose)
        os.fchmod(descriptor, copy.mode)  # after the owner, whose change clears bits of it
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _give(descriptor: int, owner: int, group: int) -> None:
    try:
        os.fchown(descriptor, owner, group)
    except PermissionError:
        raise AgentError(f"its owner or group is root's to set: {ROOT_ADVICE}") from None


def _is_there(copy: Copy, data: bytes, folder: int, whose: tuple[int, int]) -> bool:
    try:
        found = os.stat(copy.to.name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode) or found.st_size != len(data):
            return False
        with open(os.open(copy.to.name, _FILE, dir_fd=folder), "rb") as file:
            found = os.fstat(file.fileno())
            if file.read(len(data) + 1) != data:
                return False
    except FileNotFoundError:
        return False
    owner, group = whose
    is_mode = stat.S_IMODE(found.st_mode) == copy.mode
    return is_mode and owner in (-1, found.st_uid) and group in (-1, found.st_gid)


def opened_folder_of(copy: Copy) -> int:
    """A descriptor of the folder that `place` writes `copy` to. Raises: AgentError, OSError."""
    return opened_folder(copy.to.parent, Path("/"), {0, os.geteuid(), _number(copy.owner, "user")})


def _number(name: str, kind: str) -> int:
    """The id of a user or group by name or number; -1 for ""."""
    if not name or name.isdecimal():
        return int(name or -1)
    try:
        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
    except KeyError:
        raise AgentError(f"there is no {kind} {name!r}") from None


def _password(file: Path) -> bytes:
    with opened_file(file) as opened:
        if os.fstat(opened.fileno()).st_mode & 0o077:
            raise AgentError(f"{file} is readable by other users")
        line = opened.read(PASSWORD_SIZE_MAX + 1).partition(b"\n")[0].removesuffix(b"\r")
    if not line or len(line) > PASSWORD_SIZE_MAX:
        raise AgentError(f"{file} holds no password of 1 to {PASSWORD_SIZE_MAX} bytes")
    return line
