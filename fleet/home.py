"""A fleet's home: one folder with its settings, its CAs, its server identity and its registry.

    HOME/
      fleet.toml          settings, commented
      ca/root.pem         what devices trust; root.key beside it signs issuing CAs only
      ca/issuing.pem      signs everything else; issuing.key
      server/server.pem   the listeners' certificate with its chain; server.key
      registry.db         devices, credentials, tokens, audit, events
      state/              revocations.jsonl: what a restore of an older registry must not undo
      archive/            what retention has taken out of the registry
      run/                sockets and generated files of a running server; may be removed when none runs

Keys are 0600, the folders that hold them 0700. A home is made beside its place and moved in whole: it is there
complete, or not at all.
"""

import ipaddress
import os
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.authority import create_issuing, create_root, issue_server_certificate, names_of_server
from fleet.ca.issuer import LocalIssuer
from fleet.ca.keys import load_key, write_key
from fleet.domain.device import Model
from fleet.domain.errors import Conflict, NotFound, Refused
from fleet.services.inventory import add_model
from fleet.settings import Settings, read_settings, render
from fleet.storage.revocation_log import RevocationLog
from fleet.storage.sqlite import SqliteRegistry
from fleet.tls.contexts import ServerIdentity


@dataclass(frozen=True, slots=True)
class Home:
    """The paths of a home. Making one touches nothing."""

    path: Path

    @property
    def settings_file(self) -> Path:
        return self.path / "fleet.toml"

    @property
    def root_certificate(self) -> Path:
        return self.path / "ca" / "root.pem"

    @property
    def root_key(self) -> Path:
        return self.path / "ca" / "root.key"

    @property
    def issuing_certificate(self) -> Path:
        return self.path / "ca" / "issuing.pem"

    @property
    def issuing_key(self) -> Path:
        return self.path / "ca" / "issuing.key"

    @property
    def server_chain(self) -> Path:
        return self.path / "server" / "server.pem"

    @property
    def server_key(self) -> Path:
        return self.path / "server" / "server.key"

    @property
    def registry(self) -> Path:
        return self.path / "registry.db"

    @property
    def revocations(self) -> Path:
        return self.path / "state" / "revocations.jsonl"

    @property
    def event_marks(self) -> Path:
        return self.path / "state" / "event-marks.jsonl"

    @property
    def archive(self) -> Path:
        return self.path / "archive"

    @property
    def run(self) -> Path:
        return self.path / "run"


def open_home(path: Path) -> Home:
    """The home at `path`.

    Raises: NotFound (`no-home`) when there is none. Refused (`home-exposed`) when others could write to it.
    """
    home = Home(path)
    if not home.settings_file.is_file():
        raise NotFound("no-home", f"{path} is not a fleet home.", f"Make one with: fleet init {shlex.quote(str(path))}")
    _must_be_ours(home)
    return home


def _must_be_ours(home: Home) -> None:
    for place in (home.path, home.settings_file):
        found = place.stat()
        if found.st_mode & 0o022 or found.st_uid not in (0, os.geteuid()):
            raise Refused(
                "home-exposed",
                f"{place} can be changed by others.",
                "It must belong to who runs this, or to root, and be writable by nobody else.",
            )
    if home.run.is_symlink():
        raise Refused("home-exposed", f"{home.run} is a link.", "Remove it; it is made anew as a folder.")


def settings_of(home: Home) -> Settings:
    """Raises: SettingsError."""
    return read_settings(home.settings_file)


def load_issuer(home: Home) -> LocalIssuer:
    """The issuing CA of `home`, ready to sign."""
    return LocalIssuer(_certificate(home.issuing_certificate), load_key(home.issuing_key))


def authority_chain(home: Home) -> tuple[x509.Certificate, ...]:
    """The certificates that EST's cacerts hands out: the root first, then the issuing CA."""
    return _certificate(home.root_certificate), _certificate(home.issuing_certificate)


def server_identity(home: Home) -> ServerIdentity:
    """What the listeners show: leaf and chain without the root, and the key."""
    chain = x509.load_pem_x509_certificates(home.server_chain.read_bytes())
    return ServerIdentity(tuple(chain), load_key(home.server_key))


def renew_server_certificate(home: Home, settings: Settings, now: datetime) -> str:
    """Issue the server certificate anew when it should be, for the same key, and say why; "" when it need not be.

    It need be when a third of its life is left, or when `fleet.toml` names other hosts than it does. The file is
    replaced whole: who reads it finds the old chain or the new one.
    """
    current = x509.load_pem_x509_certificates(home.server_chain.read_bytes())[0]
    life = current.not_valid_after_utc - current.not_valid_before_utc
    if names_of_server(current) != {_canonical(host) for host in settings.hosts}:
        why = "fleet.toml names other hosts"
    elif current.not_valid_after_utc - now < life / 3:
        why = f"it would expire on {current.not_valid_after_utc:%Y-%m-%d}"
    else:
        return ""
    issuing = _certificate(home.issuing_certificate)
    renewed, _ = issue_server_certificate(
        issuing, load_key(home.issuing_key), settings.hosts, now, key=load_key(home.server_key)
    )
    fresh = home.server_chain.with_suffix(".new")
    fresh.write_bytes(renewed.public_bytes(Encoding.PEM) + issuing.public_bytes(Encoding.PEM))
    sync(fresh)
    fresh.replace(home.server_chain)
    sync(home.server_chain.parent)
    return why


def _canonical(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def revocation_log(home: Home) -> RevocationLog:
    """The log that notes what the registry of `home` has revoked."""
    return RevocationLog(home.revocations, fleet_name(home))


def fleet_name(home: Home) -> str:
    """How a fleet is told from any other: the SHA-256 of its root certificate, in hex."""
    return _certificate(home.root_certificate).fingerprint(hashes.SHA256()).hex()


async def open_registry(home: Home) -> SqliteRegistry:
    return await SqliteRegistry.open(home.registry, create=False)


async def create_home(path: Path, settings: Settings, now: datetime) -> Home:
    """Make a new home at `path`: settings, CAs, server certificate, registry with a model named "default".

    Raises: Conflict (`home-exists`) when something stands at `path` already; nothing of it is touched.
    """
    must_be_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Home(Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)))  # mkdtemp makes it 0700
    try:
        _write_authority(building, settings, now)
        building.settings_file.write_text(render(settings))
        building.settings_file.chmod(0o600)  # whatever the umask: open_home refuses one that others can change
        building.run.mkdir(mode=0o700)
        registry = await SqliteRegistry.open(building.registry)
        try:
            await add_model(registry, Model("default"), actor="operator", now=now)
        finally:
            await registry.close()
        sync_tree(building.path)
        must_be_free(path)
        building.path.rename(path)  # onto nothing, or onto an empty folder: the system refuses anything else
    except BaseException:
        shutil.rmtree(building.path, ignore_errors=True)
        raise
    sync(path.parent)
    return Home(path)


def must_be_free(path: Path) -> None:
    """Raises: Conflict (`home-exists`): a home cannot be made at `path`."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise Conflict("home-exists", f"{path} is there already and is not a folder.", "Name another place.")
    if path.is_dir() and any(path.iterdir()):
        what = "a fleet home already" if Home(path).settings_file.exists() else "not empty"
        raise Conflict("home-exists", f"{path} is {what}; nothing was changed.", "Name a new or empty folder.")


def _write_authority(home: Home, settings: Settings, now: datetime) -> None:
    for folder in (home.root_certificate.parent, home.server_chain.parent):
        folder.mkdir(mode=0o700)
    root, root_key = create_root(settings.name, now)
    issuing, issuing_key = create_issuing(settings.name, root, root_key, now)
    server, server_key = issue_server_certificate(issuing, issuing_key, settings.hosts, now)
    home.root_certificate.write_bytes(root.public_bytes(Encoding.PEM))
    home.issuing_certificate.write_bytes(issuing.public_bytes(Encoding.PEM))
    home.server_chain.write_bytes(server.public_bytes(Encoding.PEM) + issuing.public_bytes(Encoding.PEM))
    write_key(home.root_key, root_key)
    write_key(home.issuing_key, issuing_key)
    write_key(home.server_key, server_key)


def _certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def sync_tree(top: Path) -> None:
    """Make everything under `top` durable."""
    for folder, _, files in os.walk(top):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))


def sync(path: Path) -> None:
    """Make the file or folder `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
