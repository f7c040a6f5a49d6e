"""agent.toml, the configuration of one device: read once into a frozen value; errors name the key."""

import os
import re
import shlex
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_agent.config.apps import NO_APPS, AppsConfig, read_apps
from device_agent.config.endpoints import Endpoint
from device_agent.config.hooks import Hook, read_hooks
from device_agent.config.settings import BY_NAME, SETTINGS, rendered
from device_agent.config.spool import NO_SPOOL, SpoolConfig
from device_agent.store.atomic_files import must_be_ours, opened_file, others_may_write, write_atomically
from device_agent.store.key_store import FILE, PKCS11, KeyStore
from fleet.est_client.arguments import check_device_id
from fleet.est_client.errors import BadConfig
from fleet.wire.errors import Malformed
from fleet.wire.text import without_mark

FILE_NAME = "agent.toml"
CA_NAME = "ca.pem"
FILE_SIZE_MAX = 64 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class AgentConfig:
    home: Path
    device_id: str
    hardware_serial: str
    est_url: str
    mqtt_host: str
    mqtt_port: int
    ca_file: Path
    keepalive_seconds: int
    session_expiry_seconds: int
    renew_at_fraction: float
    """Share of a certificate's lifetime after which its renewal window opens."""
    retry_base_seconds: float
    retry_cap_seconds: float
    refused_retry_seconds: float
    """Minimum delay after a refusal by the server."""
    outbox_messages_max: int
    key_store: KeyStore
    hooks: tuple[Hook, ...] = ()
    apps: AppsConfig = NO_APPS
    spool: SpoolConfig = NO_SPOOL
    est_others: tuple[str, ...] = ()
    """URLs of EST servers that are tried after `est_url`, in this order."""
    mqtt_others: tuple[Endpoint, ...] = ()
    pins: tuple[str, ...] = ()
    """Keys of servers or trust anchors, one of which a server's chain must have; () for any that verifies."""
    managed: bool = True
    """Whether the agent takes the fleet's commands (`device_agent.managed`)."""

    @property
    def mqtt_servers(self) -> tuple[Endpoint, ...]:
        """The MQTT servers, in the order in which they are tried."""
        return (Endpoint(self.mqtt_host, self.mqtt_port), *self.mqtt_others) if self.mqtt_host else self.mqtt_others

    @property
    def est_urls(self) -> tuple[str, ...]:
        """The EST servers, in the order in which they are tried."""
        return (self.est_url, *self.est_others)


@dataclass(frozen=True, slots=True)
class NewHome:
    """What a new home is given; all other settings start at their defaults."""

    device_id: str
    est_url: str
    mqtt_host: str
    mqtt_port: int
    ca_pem: bytes
    hardware_serial: str = ""
    spool: bool = False
    mqtt_path: str = ""
    """Of a WebSocket; "" for MQTT without one."""
    key_store: str = FILE
    tcti: str = ""
    key_uri: str = ""


def must_be_free(home: Path) -> None:
    """Refuse a folder with files of others: `reset` erases all that is in a home. What an init or a reset that was cut
    off leaves is none. Raises: BadConfig. OSError.
    """
    ours = {CA_NAME, f".{CA_NAME}.new", f".{FILE_NAME}.new", "lost+found"}
    names = sorted(each.name for each in home.iterdir()) if home.is_dir() and not (home / FILE_NAME).exists() else []
    if foreign := next((name for name in names if name not in ours and not name.endswith(".lock")), ""):
        raise BadConfig(f"{home} is not empty: it has {foreign!r}.", "A home holds one device, and nothing else.")


def write_config(home: Path, new: NewHome) -> Path:
    """Create `home` with ca.pem and agent.toml, and return the latter's path. agent.toml is written last: a home that
    has one is complete.

    Raises: BadConfig if the home has one already; nothing in it is changed then. OSError, as when others own the
    folder or may write into it.
    """
    path = home / FILE_NAME
    if path.exists():
        raise BadConfig(f"{home} is already a device's home.", "Choose another --home, or use the existing one.")
    check_device_id(new.device_id)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    must_be_ours(home)
    write_atomically(home / CA_NAME, new.ca_pem)
    given: dict[str, object] = {
        "device_id": new.device_id,
        "hardware_serial": new.hardware_serial,
        "est.url": new.est_url,
        "spool.enabled": new.spool,
        "key.store": new.key_store,
    }
    given |= {f"key.{name}": value for name, value in (("tcti", new.tcti), ("uri", new.key_uri)) if value}
    if new.mqtt_path:
        given["mqtt.servers"] = [str(Endpoint(new.mqtt_host, new.mqtt_port, new.mqtt_path))]
    else:
        given |= {"mqtt.host": new.mqtt_host, "mqtt.port": new.mqtt_port}
    write_atomically(path, rendered(given).encode())
    return path


def read_config(home: Path, owners: Collection[int] | None = None) -> AgentConfig:
    """The configuration in `home`, which root, this user or, for others than root, the home's owner has written: it
    names commands that are run. `owners`: the users who may have written it, instead of these.

    Raises: BadConfig, naming the key or the line.
    """
    path = home / FILE_NAME
    try:
        text = without_mark(_read(path, owners)).decode()
        tree = tomllib.loads(text)
    except FileNotFoundError:
        advice = "Check --home or DEVICE_HOME; `device-agent init` makes a new home."
        raise BadConfig(f"{home} is not a device's home: it has no {FILE_NAME}.", advice) from None
    except OSError as error:
        raise BadConfig(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, Malformed) as error:
        raise BadConfig(f"{path}: {error}") from error
    hooks = read_hooks(str(path), tree.pop("hook", []), _lines_of(text, "[[hook]]"))
    if inside := next((copy.to for hook in hooks for copy in hook.copies if _is_within(copy.to, home)), None):
        raise BadConfig(f"{path}: the copy {inside} would be within the device's home.", "Copy it to another folder.")
    apps = read_apps(str(path), tree.pop("apps", {}))
    values = _values(path, text, tree)
    spool = SpoolConfig(**{name[6:]: values.pop(name) for name in tuple(values) if name.startswith("spool.")})
    keys = {name[10:]: values.pop(name) for name in tuple(values) if name.startswith("key_store.")}
    if keys["kind"] == PKCS11 and not keys["uri"]:
        raise BadConfig(f"{path}: key.uri is missing.", 'Write it as "pkcs11:token=NAME".')
    values["ca_file"] = home / (values["ca_file"] or CA_NAME)
    if not values["mqtt_host"] and not values["mqtt_others"]:
        raise BadConfig(f"{path}: mqtt.host is missing.")
    return AgentConfig(home=home, hooks=hooks, apps=apps, spool=spool, key_store=KeyStore(home, **keys), **values)


def _values(path: Path, text: str, tree: dict[str, Any]) -> dict[str, Any]:
    """The settings of `tree`, which is `text`, by their fields. Raises: BadConfig, naming the line and the setting."""
    values = {setting.field: setting.default for setting in SETTINGS}
    for section, keys in tree.items():
        if not isinstance(keys, dict) and section in {setting.section for setting in SETTINGS}:
            raise BadConfig(f"{_place(path, text, section)}: {section} must be a section, [{section}].")
        for key, value in keys.items() if isinstance(keys, dict) else [("", keys)]:
            name = f"{section}.{key}" if key else section
            place = _place(path, text, name)
            if (setting := BY_NAME.get(name)) is None:
                raise BadConfig(f"{place}: there is no setting {name!r}.", _near(name))
            try:
                values[setting.field] = setting.values.read(value)
            except ValueError as error:
                raise BadConfig(f"{place}: {name} {error}.") from error
            except BadConfig as error:
                raise BadConfig(f"{place}: {name}: {error.message}", error.advice) from error
    for setting in SETTINGS:
        if setting.is_required and not values[setting.field]:
            raise BadConfig(f"{path}: {setting.name} is missing.")
    return values


def _place(path: Path, text: str, name: str) -> str:
    """The file, and the line of the setting or section, which tomllib does not report."""
    section, _, key = name.rpartition(".")
    inside = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([\w.\"-]+)", line):
            inside = header[1].replace('"', "")
            if inside == name:
                return f"{path}, line {number}"
        elif re.match(rf"\s*\"?{re.escape(key if inside == section else name)}\"?\s*=", line):
            return f"{path}, line {number}"
    return str(path)


def _lines_of(text: str, header: str) -> list[int]:
    """The lines of the tables of a list, in their order."""
    return [number for number, line in enumerate(text.splitlines(), 1) if line.replace(" ", "").startswith(header)]


def _near(name: str) -> str:
    import difflib  # for the hint alone

    close = difflib.get_close_matches(name, BY_NAME, n=1)
    return f"Did you mean {close[0]}?" if close else "Check its spelling and its [section]."


def _read(path: Path, owners: Collection[int] | None) -> bytes:
    with opened_file(path) as file:
        found, folder = os.fstat(file.fileno()), path.parent.stat()
        data = file.read(FILE_SIZE_MAX + 1)
    us = os.geteuid()
    if owners is None:
        owners = {0, us} if us == 0 else {0, us, folder.st_uid}
    if found.st_uid not in owners:
        raise BadConfig(
            f"{path} belongs to user {found.st_uid}, whose settings are not followed here.",
            "Read it. If it is right, give it to the owner of the home, or to root.",
        )
    if bad := next((each for each, of in ((path, found), (path.parent, folder)) if others_may_write(of)), None):
        raise BadConfig(f"Others may write into {bad}.", f"Run: chmod go-w {shlex.quote(str(bad))}")
    if len(data) > FILE_SIZE_MAX:
        raise BadConfig(f"{path} is larger than {FILE_SIZE_MAX} bytes.")
    return data


def _is_within(file: Path, home: Path) -> bool:
    return Path(os.path.realpath(file.parent)).is_relative_to(os.path.realpath(home))
