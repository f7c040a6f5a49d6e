"""A machine in namespaces of its own: systemd as process 1, these files under an overlay, this network.

What is written in it is gone with it. It takes root and a kernel with overlayfs and the unified control groups.
"""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.waiting import wait_until

SYSTEMD = Path("/lib/systemd/systemd")
# Only what the tests install starts, besides systemd's own units.
_BOOT = r"""
set -e
mount --make-rprivate /
mkdir -p "$1/layers" "$1/root"
mount -t tmpfs tmpfs "$1/layers"
mkdir "$1/layers/upper" "$1/layers/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/layers/upper,workdir=$1/layers/work" "$1/root"
mount -t cgroup2 none "$1/root/mnt"
mkdir -p "$1/root/mnt/$2"
echo $$ > "$1/root/mnt/$2/cgroup.procs"
umount "$1/root/mnt"
cp -r "$3" "$1/root/opt/"  # before systemd clears /tmp
cd "$1/root"
rm -rf etc/init.d/* etc/rc?.d/* etc/systemd/system/*.wants lib/systemd/system-generators/postgresql-generator
rm -rf var/log/journal
echo 0123456789abcdef0123456789abcdef > etc/machine-id  # not a first boot, which enables what is installed
exec unshare --pid --fork --cgroup --uts --ipc --kill-child -- sh -ec '
cd "$0"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 none sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs dev
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
    name=${node%%:*} numbers=${node#*:}
    mknod -m 666 "dev/$name" c "${numbers%:*}" "${numbers#*:}"
done
mkdir dev/pts dev/shm
mount -t devpts devpts dev/pts -o newinstance,ptmxmode=0666
ln -s pts/ptmx dev/ptmx
pivot_root . mnt  # in a chroot, no unit gets users of its own (PrivateUsers=)
umount -l mnt
exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . /lib/systemd/systemd --unit=multi-user.target
' "$PWD"
"""


def why_not() -> str:
    """Why systemd can't be booted here; empty: it can."""
    missing = [name for name in ("unshare", "nsenter", "systemctl", "journalctl") if not shutil.which(name)]
    if os.geteuid() != 0:
        return "systemd as process 1 takes root"
    if missing or not SYSTEMD.exists():
        return f"not installed: {', '.join(missing) or SYSTEMD}"
    known = Path("/proc/filesystems").read_text().split()
    return "" if {"overlay", "cgroup2"} <= set(known) else "the kernel has no overlayfs or cgroup2"


class Booted:
    """A machine that runs from `boot` until `close`; `program`, a folder, is in its /opt."""

    def __init__(self, folder: Path, program: Path) -> None:
        self.folder = folder
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "console.log"

    def boot(self) -> "Booted":
        """Raises: AssertionError if systemd does not come up."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", _BOOT, "boot", self.folder, f"booted-{os.getpid()}", self._program],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(lambda: self._is_up(self._process), f"systemd is not up, see {self._log}", self._process)
        return self

    def call(self, *command: str, expect: int | None = 0, give: str = "") -> str:
        """Run a command there as root: what it printed."""
        done = subprocess.run(
            ["nsenter", f"--target={self._init}", "--mount", "--pid", "--cgroup", "--ipc", "--root", "--wd", *command],
            input=give,
            capture_output=True,
            text=True,
            check=False,
        )
        if expect is not None and done.returncode != expect:
            journal = self.call("journalctl", "-q", "-n", "40", "--no-pager", expect=None)
            raise AssertionError(f"{' '.join(command)} exits {done.returncode}\n{done.stdout}{done.stderr}\n{journal}")
        return done.stdout

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()  # with it goes its namespace of processes
            self._process.wait()

    @property
    def _init(self) -> int:
        """The process that is number 1 there."""
        assert self._process is not None
        child = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return int(child.read_text().split()[0])

    def _is_up(self, process: subprocess.Popen[bytes] | None) -> bool:
        """Whether all units of its target have been started; `systemctl` hangs before systemd answers."""
        with contextlib.suppress(OSError, IndexError):
            if Path(f"/proc/{self._init}/comm").read_text().strip() == "systemd":
                state = self.call("timeout", "5", "systemctl", "is-system-running", expect=None).strip()
                return state in ("running", "degraded")
        return False
