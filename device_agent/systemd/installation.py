"""A unit's files in a system, and the commands that put them in force."""

import contextlib
import os
import pwd
import re
import shlex
import subprocess
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from device_agent.config.agent_config import FILE_NAME, FILE_SIZE_MAX
from device_agent.config.hooks import Copy
from device_agent.errors import AgentError
from device_agent.hooks.copies import place
from device_agent.store.atomic_files import opened_file, others_may_write
from device_agent.store.folders import opened_folder
from device_agent.systemd.unit import Unit

UNIT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,30}")
COMMAND_SECONDS_MAX = 90.0

Run = Callable[[list[str]], str]


def run_command(argv: list[str]) -> str:
    """What it prints, whatever its exit code. Raises: AgentError if it cannot be run or does not end."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS_MAX)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AgentError(f"{shlex.join(argv)}: {error}") from error
    if done.returncode and argv[1] not in ("is-active", "is-enabled"):  # whose exit code is their answer
        raise AgentError(f"{shlex.join(argv)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def user_ids(user: str) -> set[int]:
    """Root, us, and the service's `user` if there is one: whose homes a service may be installed for."""
    with contextlib.suppress(KeyError):
        return {0, os.geteuid(), pwd.getpwnam(user).pw_uid}
    return {0, os.geteuid()}


def approve(settings: Path, home: Path, users: Collection[int]) -> None:
    """Make root's `settings` the home's, in a file that nobody else has ever had open. `users` may own the home.

    Raises: AgentError if another user could have written `settings`; OSError.
    """
    ours = {0, os.geteuid()}
    settings = settings.absolute()
    folder = opened_folder(settings.parent, Path("/"), ours)
    try:
        with opened_file(Path(f"/proc/self/fd/{folder}") / settings.name) as file:
            found = os.fstat(file.fileno())
            if found.st_uid not in ours or others_may_write(found):
                raise AgentError(f"{settings} is not root's alone to write.", "Copy it, and read the copy.")
            data = file.read(FILE_SIZE_MAX + 1)
    finally:
        os.close(folder)
    folder = opened_folder(home, Path("/"), ours | set(users))
    try:
        with contextlib.suppress(FileNotFoundError):  # it may be root's, and have been another's who has it open
            os.unlink(FILE_NAME, dir_fd=folder)
    finally:
        os.close(folder)
    place(Copy("settings", home / FILE_NAME, "text", 0o600), data, users=users)


def check_capabilities(unit: Unit, *, approved: bool = False) -> None:
    """Capabilities are granted by an agent.toml that root has written, in a home of root's, or has just `approved`: one
    that has been another user's may still be open there, for writing.

    Raises: AgentError. OSError.
    """
    file = unit.home / FILE_NAME
    owners = {file.lstat().st_uid, *(() if approved else (unit.home.stat().st_uid,))}
    if unit.capabilities and owners - {0, os.geteuid()}:
        raise AgentError(
            f"Hooks of {file} need {', '.join(unit.capabilities)}, and it is not root's, in a home of root's.",
            "Copy it to a folder of root's, read the copy, and install again with --settings COPY.",
        )


@dataclass(frozen=True, slots=True)
class Installation:
    """`root` is / or another system's tree."""

    unit: Unit
    root: Path = Path("/")
    run: Run = run_command

    @property
    def unit_file(self) -> Path:
        return self.root / "etc/systemd/system" / self.unit.file_name

    @property
    def user_file(self) -> Path:
        return self.root / "etc/sysusers.d" / f"{self.unit.name}.conf"

    @property
    def is_live(self) -> bool:
        """Whether this is the running system, and systemd runs it: sd_booted(3)."""
        return self.root == Path("/") and Path("/run/systemd/system").is_dir()

    def install(self, *, start: bool = True) -> Iterator[str]:
        """Lines for a person, as it goes. Raises: AgentError, OSError."""
        self._check_root()
        for file, text in {self.user_file: self.unit.sysusers_text, self.unit_file: self.unit.text}.items():
            file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            changed = place(Copy("unit", file, "text", 0o644), text.encode(), self.root)
            yield f"{'Wrote' if changed else 'Unchanged:'} {file}"
        steps = self._steps(start)
        if not self.is_live:
            where = "systemd does not run here. When it does:"
            yield where if self.root == Path("/") else f"In that system, once it has {self.unit.home} and the program:"
            yield from (f"  {shlex.join(step)}" for step in steps)
            return
        folder = opened_folder(self.unit.home, Path("/"), user_ids(self.unit.user))
        held = f"/proc/{os.getpid()}/fd/{folder}/."  # by its path, the user could lead chown to another
        try:
            for step in steps:
                self.run([held if word == str(self.unit.home) else word for word in step])
        finally:
            os.close(folder)
        yield (
            f"Started {self.unit.file_name}." if start else f"To start it: systemctl enable --now {self.unit.file_name}"
        )

    def uninstall(self) -> Iterator[str]:
        """Likewise. The home and the user stay."""
        self._check_root()
        if not self.unit_file.exists() and not self.user_file.exists():
            yield "Not installed."
            return
        if self.is_live and self.unit_file.exists():
            self.run(["systemctl", "disable", "--now", self.unit.file_name])
        for file in (self.unit_file, self.user_file):
            file.unlink(missing_ok=True)
            yield f"Removed {file}"
        if self.is_live:
            self.run(["systemctl", "daemon-reload"])

    def state(self) -> dict[str, str]:
        """ "unit", "enabled" and "active", each in a word or two."""
        try:
            is_same = self.unit_file.read_text() == self.unit.text
            unit = "installed" if is_same else "installed, and not as it would be now: run install again"
        except FileNotFoundError:
            unit = "not installed"
        if not self.is_live:
            return {"unit": unit, "enabled": "unknown", "active": "systemd does not run here"}
        name = self.unit.file_name
        return {
            "unit": unit,
            "enabled": self.run(["systemctl", "is-enabled", name]) or "not found",
            "active": self.run(["systemctl", "is-active", name]),
        }

    def _steps(self, start: bool) -> list[list[str]]:
        steps = [
            ["systemd-sysusers", str("/" / self.user_file.relative_to(self.root))],
            ["chown", "-hR", f"{self.unit.user}:{self.unit.user}", str(self.unit.home)],
            ["systemctl", "daemon-reload"],
        ]
        # A unit that runs already is to run as it is written now.
        return [
            *steps,
            *([["systemctl", "enable", self.unit.file_name], ["systemctl", "restart", self.unit.file_name]] * start),
        ]

    def _check_root(self) -> None:
        if self.root == Path("/") and os.geteuid() != 0:
            raise AgentError("Units of the system are root's to install.", "Run it with sudo, or see `service print`.")
