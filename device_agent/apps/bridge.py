"""Configuration of a mosquitto that bridges to the fleet beside the agent, as the client id `DEVICE/NAME`."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from device_agent.apps.access import user_id
from device_agent.config.agent_config import FILE_NAME, AgentConfig, read_config
from device_agent.config.hooks import Copy
from device_agent.config.topics import filter_for
from device_agent.hooks.copies import place
from device_agent.store.atomic_files import write_atomically
from fleet.est_client.errors import BadConfig, ClientError

# The part after the slash of a client id that a model with `prefix` allows.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,63}")
HOOK_NAME_SIZE_MAX = 32
CONFIG_NAME = "bridge.conf"
PUBLISH, SUBSCRIBE = "devices/{id}/up/#", "devices/{id}/down/#"


@dataclass(frozen=True, slots=True)
class Bridge:
    """Its files are in `folder`; topics are the same on both sides."""

    config: AgentConfig
    folder: Path
    name: str = "bridge"
    user: str = "mosquitto"
    """Whom the key's copy belongs to."""
    publish: Sequence[str] = (PUBLISH,)
    subscribe: Sequence[str] = (SUBSCRIBE,)
    reload: Sequence[str] = ()
    """Command after each renewal."""

    @property
    def hook_name(self) -> str:
        return f"bridge-{self.name}".replace(":", "-")[:HOOK_NAME_SIZE_MAX]

    @property
    def client_id(self) -> str:
        return f"{self.config.device_id}/{self.name}"

    def mosquitto(self) -> str:
        """The part of mosquitto.conf. Raises: BadConfig if a value cannot stand in it."""
        if not NAME.fullmatch(self.name):
            raise BadConfig(
                "The name of a bridge is 1 to 64 letters, digits, dots, colons, dashes and underscores, first a letter "
                "or digit."
            )
        folder = str(self.folder)
        if not folder.isprintable() or folder != folder.strip():
            raise BadConfig(f"{folder!r} cannot stand in a mosquitto.conf.")
        device_id = self.config.device_id
        topics = [(filter_for(each, device_id), "out") for each in self.publish]
        topics += [(filter_for(each, device_id), "in") for each in self.subscribe]
        if bad := next((each for each, _ in topics if " " in each), ""):
            raise BadConfig(f"{bad!r} has a space, which a topic of a mosquitto bridge cannot have.")
        servers = [str(each) for each in self.config.mqtt_servers if not each.path]
        if not servers:
            raise BadConfig("A mosquitto bridge has no WebSocket, and agent.toml names no other server.")
        lines = [
            f"# Bridge of the device {device_id} to its fleet, written by device-agent bridge mosquitto.",
            f"connection {self.name}",
            f"addresses {' '.join(servers)}",
            f"remote_clientid {self.client_id}",
            f"bridge_cafile {folder}/ca.pem",
            f"bridge_certfile {folder}/cert.pem",
            f"bridge_keyfile {folder}/key.pem",
            "bridge_protocol_version mqttv311",
            "cleansession false",
            "# The fleet's gateway grants no $SYS topics, and knows no private version of the protocol.",
            "notifications false",
            "try_private false",
            "bridge_attempt_unsubscribe false",
            "# It reads the copies again at each connection; the fleet ends the old certificate's after a renewal.",
            "restart_timeout 1 30",
            *(f"topic {each} {way} 1" for each, way in topics),
        ]
        if bad := next((each for each in lines if not each.isprintable()), ""):
            raise BadConfig(f"{bad!r} cannot stand in a mosquitto.conf.")
        return "\n".join(lines) + "\n"

    @property
    def _mark(self) -> str:
        """The line of agent.toml that begins what is ours."""
        return f"# {self.hook_name}, written by device-agent bridge mosquitto"

    def _without_hook(self, text: str) -> str:
        """agent.toml without the hook that `install` has written: from its mark to the next empty line."""
        lines, ours = [], False
        for line in text.splitlines(keepends=True):
            ours = line.rstrip() == self._mark or (ours and bool(line.strip()))
            lines += [] if ours else [line]
        return "".join(lines)

    def hook(self) -> str:
        """The part of agent.toml that keeps the copies of the certificate up to date."""
        copies = (("anchors", "ca.pem", "0644"), ("chain", "cert.pem", "0644"), ("key", "key.pem", "0600"))
        text = f"\n{self._mark}\n[[hook]]\nname = {json.dumps(self.hook_name)}\n"
        if self.reload:
            text += f"run = {json.dumps(list(self.reload))}\n"
        for content, name, mode in copies:
            to = json.dumps(str(self.folder / name))
            text += f'[[hook.copy]]\ncontent = "{content}"\nto = {to}\nmode = "{mode}"\n'
            text += f"owner = {json.dumps(self.user)}\n" if self.user else ""
        return text

    def install(self) -> AgentConfig:
        """Write the configuration to the folder and the hook to agent.toml, in place of an earlier one of the name, and
        return the latter, read again.

        Raises: BadConfig if there is no such user, or agent.toml has another hook of the name, or cannot take this one;
        AgentError if another user could replace the configuration. OSError. Nothing is changed then.
        """
        conf = self.mosquitto()
        if self.user and user_id(int(self.user) if self.user.isdecimal() else self.user) != os.geteuid() != 0:
            raise BadConfig(f"Only root may give copies to {self.user}.", "Run it as root, or pass your own --user.")
        home = self.config.home
        path = home / FILE_NAME
        before = path.read_bytes()
        hook = self.hook().encode()
        if hook.strip() not in before:
            rest = self._without_hook(before.decode()).encode()
            if rest == before and any(each.name == self.hook_name for each in self.config.hooks):
                raise BadConfig(
                    f"{path} has another hook named {self.hook_name!r}.", "Remove it, or choose another --name."
                )
            write_atomically(path, rest.rstrip() + b"\n" + hook)
        try:
            config = read_config(home)
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            # Ours, and in a folder of ours: mosquitto reads it as root, and loads the plugins that it names.
            place(Copy("bridge", self.folder / CONFIG_NAME, "text", 0o644), conf.encode())
        except (ClientError, OSError):
            write_atomically(path, before)
            raise
        return config

    def remove(self) -> tuple[Copy, ...]:
        """Take the hook out of agent.toml, and return what it and `install` have made: for the caller to
        erase.

        Raises: BadConfig if agent.toml has none that `install` has written. OSError.
        """
        path = self.config.home / FILE_NAME
        before = path.read_bytes()
        rest = self._without_hook(before.decode()).encode()
        copies = [copy for hook in self.config.hooks if hook.name == self.hook_name for copy in hook.copies]
        if rest == before or not copies:
            raise BadConfig(f"{path} has no bridge named {self.name!r}.", "See --name.")
        write_atomically(path, rest.rstrip() + b"\n")
        return (*copies, replace(copies[0], to=copies[0].to.with_name(CONFIG_NAME)))
