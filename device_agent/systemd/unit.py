"""The systemd unit of an agent: its text, from a home and its settings. No I/O.

Its process may write to its home and to the folders that its hooks copy to, and to nothing else; it has no capability
unless a hook changes an owner or a user.
"""

from dataclasses import dataclass
from pathlib import Path

from device_agent.config.hooks import Hook

WATCHDOG_SECONDS = 60  # the loop turns every five
STOP_SECONDS = 20  # the drain takes four

_TEMPLATE = """\
# Written by `device-agent service install`. Changes belong into a drop-in: systemctl edit {name}
[Unit]
Description=Device agent: key, certificate and MQTT connection of this device
Documentation=man:systemd.service(5)
Wants=network-online.target
After=network-online.target time-sync.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=kill -HUP $MAINPID
Restart=always
RestartSec=5
WatchdogSec={watchdog}
TimeoutStopSec={stop}
User={user}
Group={user}
UMask=0077

# The home, and where hooks copy to
ProtectSystem=strict
ReadWritePaths={paths}

TasksMax=256
NoNewPrivileges=yes
CapabilityBoundingSet={capabilities}
AmbientCapabilities={capabilities}
PrivateMounts=yes
PrivateTmp=yes
PrivateDevices=yes
{private_users}ProtectHome={protect_home}
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProcSubset=pid
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
{deny}SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """`command` starts the agent and stays its main process."""

    name: str
    command: tuple[str, ...]
    home: Path
    user: str
    hooks: tuple[Hook, ...] = ()

    @property
    def file_name(self) -> str:
        return f"{self.name}.service"

    @property
    def sysusers_text(self) -> str:
        """For sysusers.d(5): the system user without a password, a shell or a home directory."""
        return f'u {self.user} - "Device agent" {_quoted(str(self.home))}\n'

    @property
    def text(self) -> str:
        capabilities = self.capabilities
        folders = dict.fromkeys([self.home, *(copy.to.parent for hook in self.hooks for copy in hook.copies)])
        used = [*map(str, folders), self.command[0]]
        is_in_home = any(path.startswith(("/home/", "/root/", "/run/user/")) for path in used)
        return _TEMPLATE.format(
            name=self.name,
            command=" ".join(_quoted(word.replace("$", "$$")) for word in self.command),
            watchdog=WATCHDOG_SECONDS,
            stop=STOP_SECONDS,
            user=self.user,
            # "-": a folder that is missing is the hook's failure, not the agent's
            paths=" ".join(_quoted(f"{'' if folder == self.home else '-'}{folder}") for folder in folders),
            capabilities=" ".join(capabilities),
            private_users="" if capabilities else "PrivateUsers=yes\n",
            protect_home="read-only" if is_in_home else "yes",
            deny="" if capabilities else "SystemCallFilter=~@privileged\n",
        )

    @property
    def capabilities(self) -> list[str]:
        """What its hooks need beyond an ordinary user's rights."""
        owners = any(copy.owner or copy.group for hook in self.hooks for copy in hook.copies)
        users = any(hook.user for hook in self.hooks)
        found = ["CAP_CHOWN", "CAP_FOWNER", "CAP_DAC_OVERRIDE"] if owners else []
        return found + (["CAP_SETUID", "CAP_SETGID", "CAP_KILL"] if users else [])


def _quoted(text: str) -> str:
    """One word, as systemd reads it (systemd.syntax(7))."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if set(text) & set(" \t'\"\\;") else escaped
