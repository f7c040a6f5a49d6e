"""A fleet's home: one folder with its settings, its CAs, its server identity and its registry.

    HOME/
      fleet.toml          settings, commented
      ca/root.pem         what devices trust; root.key beside it signs issuing CAs only
      ca/issuing.pem      signs devices, stations and the server; issuing.key
      ca/operators.pem    signs operators of the admin API, and no door but that believes it; operators.key
      ca/webhook.key      signs what webhooks are asked; made when it is first needed
      ca/audit.pub        checks the signed heads of the audit; audit.key signs them
      server/server.pem   the listeners' certificate with its chain; server.key
      registry.db         devices, credentials, tokens, audit, events; unless they are in PostgreSQL
      state/              revocations.jsonl: what a restore of an older registry must not undo
      archive/            what retention has taken out of the registry
      run/                sockets and generated files of a running server; may be removed when none runs

Keys are 0600, the folders that hold them 0700. A home is made beside its place and moved in whole: it is there
complete, or not at all.
"""

import fcntl
import ipaddress
import os
import secrets
import shlex
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.authority import create_issuing, create_operators, create_root, issue_server_certificate, names_of_server
from fleet.ca.head_signer import LocalHeadSigner
from fleet.ca.issuer import OPERATORS, LocalIssuer
from fleet.ca.keys import load_key, load_or_make_key, write_key
from fleet.database_url import SCHEMES, DatabaseUrl, parse_database_url
from fleet.domain.access import Act
from fleet.domain.approval import WaitingLimits
from fleet.domain.device import Model
from fleet.domain.errors import Conflict, Invalid, NotFound, Refused
from fleet.services.inventory import add_model
from fleet.settings import Database, Settings, SettingsError, parse_database, read_settings, render
from fleet.storage.engines import Engine, Place, open_engine
from fleet.storage.revocation_log import RevocationLog
from fleet.tls.contexts import ServerIdentity
from fleet.webhook.signing import Signer
from fleet.wire.key_package import Sealer

DATABASE_VARIABLE = "FLEET_DATABASE"
"""In the environment: goes before fleet.toml."""
URL_STARTS = tuple(f"{scheme}://" for scheme in SCHEMES)


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
    def webhook_key(self) -> Path:
        """Signs what webhooks are asked."""
        return self.path / "ca" / "webhook.key"

    @property
    def audit_key(self) -> Path:
        return self.path / "ca" / "audit.key"

    @property
    def audit_public_key(self) -> Path:
        return self.path / "ca" / "audit.pub"

    @property
    def operators_certificate(self) -> Path:
        return self.path / "ca" / "operators.pem"

    @property
    def operators_key(self) -> Path:
        return self.path / "ca" / "operators.key"

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

    Raises: NotFound (`no-home`) when there is none. Refused (`home-exposed`) when others could write to it, or into its
    folders.
    """
    home = Home(path)
    if not home.settings_file.is_file():
        raise NotFound("no-home", f"{path} is not a fleet home.", f"Make one with: fleet init {shlex.quote(str(path))}")
    _must_be_ours(home)
    return home


def _must_be_ours(home: Home) -> None:
    # Whoever can put a file into ca/ says whom devices believe; into archive/, what the registry may forget.
    folders = (home.root_certificate.parent, home.server_chain.parent, home.revocations.parent, home.archive)
    for place in (home.path, home.settings_file, *filter(Path.exists, folders)):
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


def waiting_limits(settings: Settings) -> WaitingLimits:
    """How many requests may wait for an operator, and how long."""
    return WaitingLimits(
        settings.approval_requests_max,
        settings.approval_per_model_max,
        settings.approval_per_address_max,
        timedelta(days=settings.approval_days),
        settings.approval_ask_again_seconds,
    )


def load_webhook_signer(home: Home) -> Signer:
    """Signs what webhooks are asked; its key is made when it is first needed.

    Raises: Invalid (`bad-key`, `key-exposed`). OSError.
    """
    return Signer(load_or_make_key(home.webhook_key))


def load_issuer(home: Home) -> LocalIssuer:
    """The issuing CA of `home`, ready to sign."""
    return LocalIssuer(_certificate(home.issuing_certificate), load_key(home.issuing_key))


def audit_signer(home: Home) -> LocalHeadSigner:
    """The signer of the audit's heads. A home from before there were any gets its key now.

    Raises: Invalid (`bad-key`, `key-exposed`). Refused (`audit-key-lost`): heads signed by a key that is gone are still
    there to be checked; a new one is not made in silence. OSError.
    """
    if home.audit_public_key.exists() and not home.audit_key.exists():
        raise Refused(
            "audit-key-lost",
            f"{home.audit_key} is gone, and {home.audit_public_key} is there.",
            "Put the key back. If it is lost, rename audit.pub and keep it: `fleet audit verify --key` takes both.",
        )
    signer = LocalHeadSigner(load_or_make_key(home.audit_key))
    pem = signer.public_key.pem()
    if not home.audit_public_key.exists():
        fresh = home.audit_public_key.with_name(f".audit.pub.{secrets.token_hex(6)}")
        try:
            fresh.write_bytes(pem)
            sync(fresh)
            with suppress(FileExistsError):
                os.link(fresh, home.audit_public_key)
        finally:
            fresh.unlink(missing_ok=True)
        sync(home.audit_public_key.parent)
    if home.audit_public_key.read_bytes() != pem:
        message = f"{home.audit_public_key} is not the public half of audit.key beside it."
        raise Invalid("bad-key", message, "Find out who put which of them there.")
    return signer


def authority_chain(home: Home) -> tuple[x509.Certificate, ...]:
    """The certificates that EST's cacerts hands out: the root first, then the issuing CA."""
    return _certificate(home.root_certificate), _certificate(home.issuing_certificate)


def operators_authority(home: Home, now: datetime) -> x509.Certificate:
    """The operators' CA of `home`; a home that was made without one gets it now.

    Raises: Invalid (`bad-settings`): it cannot be made, since nobody knows the fleet's name. OSError.
    """
    handle = os.open(home.operators_certificate.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # two commands at once must not make two
        if not home.operators_certificate.exists():
            home.operators_key.unlink(missing_ok=True)  # of one that was cut off before its certificate was there
            _write_operators_authority(home, _fleet_name(home), now)
            sync(home.operators_certificate.parent)
    finally:
        os.close(handle)
    return _certificate(home.operators_certificate)


def _fleet_name(home: Home) -> str:
    try:
        return settings_of(home).name
    except SettingsError as error:
        raise Invalid("bad-settings", str(error)) from error


def load_operators_issuer(home: Home, now: datetime) -> LocalIssuer:
    """The operators' CA of `home`, ready to sign for operators and nobody else; made when there is none yet."""
    return LocalIssuer(operators_authority(home, now), load_key(home.operators_key), OPERATORS)


def _write_operators_authority(home: Home, name: str, now: datetime) -> None:
    """Key first, and the certificate in one step: where there is a certificate, there is its key."""
    certificate, key = create_operators(name, now)
    write_key(home.operators_key, key)
    fresh = home.operators_certificate.with_suffix(".new")
    fresh.write_bytes(certificate.public_bytes(Encoding.PEM))
    sync(fresh)
    fresh.rename(home.operators_certificate)


def server_identity(home: Home) -> ServerIdentity:
    """What the listeners show: leaf and chain without the root, and the key."""
    chain = x509.load_pem_x509_certificates(home.server_chain.read_bytes())
    return ServerIdentity(tuple(chain), load_key(home.server_key))


def key_sealer(home: Home) -> Sealer:
    """Who signs for keys that the server makes for devices: the server itself (RFC 7030, 4.4.2)."""
    chain = x509.load_pem_x509_certificates(home.server_chain.read_bytes())
    return Sealer(chain[0], load_key(home.server_key))


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
    return RevocationLog(home.revocations, fleet_fingerprint(home))


def fleet_fingerprint(home: Home) -> str:
    """How a fleet is told from any other: the SHA-256 of its root certificate, in hex."""
    return _certificate(home.root_certificate).fingerprint(hashes.SHA256()).hex()


def place_of_registry(home: Home) -> Place:
    """Where the registry of `home` is: what FLEET_DATABASE says, or else fleet.toml.

    Raises: Invalid: `bad-settings`, `bad-database`, `database-file-exposed`. NotFound (`no-database-file`).
    """
    try:
        return _place(home, settings_of(home).database)
    except SettingsError as error:
        raise Invalid("bad-settings", str(error), "Mend that line") from error


def _place(home: Home, database: Database) -> Place:
    said = os.environ.get(DATABASE_VARIABLE)
    try:
        if said and said.startswith(URL_STARTS):
            return parse_database_url(said)  # with a password or without: an environment is its owner's own
        if said:
            database = parse_database(said)
        if database.url:
            return parse_database_url(database.url)
    except ValueError as error:
        raise Invalid("bad-database", f"The database of {DATABASE_VARIABLE} {error}.") from error
    return _url_in(Path(database.file)) if database.file else home.registry


def _url_in(file: Path) -> DatabaseUrl:
    try:
        mode, text = file.stat().st_mode, file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(
            "no-database-file", f"The file {file}, which should hold the database's URL, cannot be read."
        ) from error
    if mode & 0o077:
        raise Invalid(
            "database-file-exposed",
            f"The file {file}, which holds the database's URL, is open to other users.",
            f"Close it with: chmod 600 {shlex.quote(str(file))}",
        )
    try:
        return parse_database_url(text.partition("\n")[0].strip())
    except ValueError as error:
        raise Invalid("bad-database", f"The first line of {file} {error}.") from error


async def open_registry(home: Home) -> Engine:
    """The registry of `home`, on the newest schema.

    Raises: FleetError: with a sentence that says what is wrong with its place.
    """
    return await open_engine(place_of_registry(home), create=False)


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
        await _make_registry(_place(building, settings.database), now)
        sync_tree(building.path)
        must_be_free(path)
        building.path.rename(path)  # onto nothing, or onto an empty folder: the system refuses anything else
    except BaseException:
        shutil.rmtree(building.path, ignore_errors=True)
        raise
    sync(path.parent)
    return Home(path)


async def _make_registry(place: Place, now: datetime) -> None:
    """An empty registry with a model named "default".

    Raises: Conflict (`registry-exists`) when there is one already: its fleet has other CAs.
    """
    registry = await open_engine(place)
    try:
        if await registry.last_audit():
            raise Conflict(
                "registry-exists",
                f"There is a fleet's registry in {place} already; nothing was changed.",
                "Name another database. For a second node of that fleet, copy its home.",
            )
        await add_model(registry, Model("default"), act=Act("operator", now))
    finally:
        await registry.close()


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
    audit_signer(home)
    _write_operators_authority(home, settings.name, now)


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
