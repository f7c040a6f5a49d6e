"""Layout of a home: one folder with a fleet's settings, CAs, server certificate and registry.

    HOME/
      fleet.toml          settings, commented
      ca/root.pem         the root CA that devices trust; root.key signs issuing CAs only; root.crl of an offline root
      ca/issuing.pem      signs devices, stations and the server; issuing.key; request.key while a request is out
      ca/operators.pem    signs operators of the admin API, which alone trusts it; operators.key
      ca/webhook.key      signs webhook requests; created on first use
      ca/fleet.id         the first root's fingerprint, once there is a second root; ca/roots/ former roots
      ca/former/          issuing CAs before a rollover
      ca/tenants/NAME/    the same for a tenant: an issuing CA of its own, perhaps a root of its own
      ca/audit.pub        verifies the audit's signed tree heads; audit.key signs them
      server/server.pem   the listeners' certificate with its chain; server.key; ocsp.key signs OCSP answers
      registry.db         devices, credentials, tokens, audit, events; unless they are in PostgreSQL
      state/              revocations.jsonl: revocations that the restore of an older registry must not undo;
                          revoked.jsonl: certificates that CRLs list; event-marks.jsonl: times of events;
                          audit-note.json: how the audit that is sealed here began
      archive/            records that retention moved out of the registry
      run/                sockets and generated files of a running server; removable when none runs

Keys are 0600, their folders 0700. A home is created by a rename: it is complete or absent.
"""

import hashlib
import os
import shlex
import shutil
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from fleet.config.addresses import Database, parse_database
from fleet.config.database_url import SCHEMES, DatabaseUrl, parse_database_url
from fleet.config.durable_files import sync, write_file
from fleet.config.secret_files import ExposedFile, read_secret
from fleet.config.settings import Settings
from fleet.config.settings_file import SettingsError, parse_settings, settings_text
from fleet.config.small_files import CERTIFICATES_SIZE_MAX, read_small
from fleet.domain.approval import WaitingLimits
from fleet.domain.errors import Conflict, Invalid, NotFound, Refused
from fleet.domain.files_of_settings import why_not
from fleet.home.node_name import node_name
from fleet.services.revocation_journal import catch_up
from fleet.storage.engines import Engine, RegistryLocation, open_engine
from fleet.storage.journals.revocations import RevocationJournal

if TYPE_CHECKING:
    from cryptography import x509

DATABASE_VARIABLE = "FLEET_DATABASE"
"""Environment variable that takes precedence over fleet.toml."""
URL_FILE_SIZE_MAX = 4096
URL_STARTS = tuple(f"{scheme}://" for scheme in SCHEMES)


class _Below:
    """A path of a home, from its name below it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, home: "Home", _: object) -> Path:
        return home.path / self._name


class Home(Struct, frozen=True):
    """The paths of a home. Creating the object touches no file."""

    path: Path

    settings_file = _Below("fleet.toml")
    ca = _Below("ca")
    tenants = _Below("ca/tenants")
    fleet_id = _Below("ca/fleet.id")
    root_certificate = _Below("ca/root.pem")
    root_key = _Below("ca/root.key")
    issuing_certificate = _Below("ca/issuing.pem")
    issuing_key = _Below("ca/issuing.key")
    webhook_key = _Below("ca/webhook.key")
    audit_key = _Below("ca/audit.key")
    audit_public_key = _Below("ca/audit.pub")
    operators_certificate = _Below("ca/operators.pem")
    operators_key = _Below("ca/operators.key")
    server_chain = _Below("server/server.pem")
    server_key = _Below("server/server.key")
    ocsp_key = _Below("server/ocsp.key")
    registry = _Below("registry.db")
    revocations = _Below("state/revocations.jsonl")
    audit_note = _Below("state/audit-note.json")
    revoked_certificates = _Below("state/revoked.jsonl")
    event_marks = _Below("state/event-marks.jsonl")
    archive = _Below("archive")
    run = _Below("run")


def open_home(path: Path) -> Home:
    """The home at `path`.

    Raises: NotFound (`no-home`). OSError. Refused (`home-exposed`): other users can write to it or to its folders.
    """
    home = Home(path)
    if not home.settings_file.is_file():
        path.absolute()  # another error, where the working directory has been deleted
        raise NotFound("no-home", f"{path} is not a fleet home.", f"Make one with: fleet init {shlex.quote(str(path))}")
    _must_be_ours(home)
    return home


def _must_be_ours(home: Home) -> None:
    # Write access to ca/ decides which CAs devices trust; to archive/, which records the registry may delete.
    folders = (home.ca, home.tenants, home.server_chain.parent, home.revocations.parent, home.archive)
    for place in (home.path, home.settings_file, *filter(Path.exists, folders)):
        found = place.stat()
        if found.st_mode & 0o022 or found.st_uid not in (0, os.geteuid()):
            advice = "It must belong to the user running this or to root, and be writable by no other user."
            raise Refused("home-exposed", f"{place} can be changed by others.", advice)
    if home.run.is_symlink():
        raise Refused("home-exposed", f"{home.run} is a link.", "Remove it; it is made anew as a folder.")


def settings_of(home: Home) -> Settings:
    """Raises: as `settings_and_text`."""
    return settings_and_text(home)[0]


def settings_and_text(home: Home) -> tuple[Settings, str]:
    """Those of `home`, and fleet.toml as it is. Raises: Invalid (`bad-settings`): with the line."""
    try:
        text = settings_text(home.settings_file)
        return parse_settings(text, home.settings_file), text
    except SettingsError as error:
        advice = "Correct that line." if error.line else "Check who owns it and who you are."
        raise Invalid("bad-settings", str(error), advice) from error


def waiting_limits(settings: Settings) -> WaitingLimits:
    """Of requests that wait for approval."""
    return WaitingLimits(
        settings.approval_requests_max,
        settings.approval_per_model_max,
        settings.approval_per_address_max,
        timedelta(days=settings.approval_days),
        settings.approval_ask_again_seconds,
        timedelta(days=settings.approval_stranger_days),
    )


def revocation_journal(home: Home) -> RevocationJournal:
    """The journal of revocations in the registry of `home`."""
    return RevocationJournal(
        home.revocations, fleet_fingerprint(home), registry=home.registry, node=node_name(home.path)
    )


def fleet_fingerprint(home: Home) -> str:
    """Identifier of a fleet: the SHA-256 of its first root certificate, in hex."""
    if home.fleet_id.exists():
        return home.fleet_id.read_text("ascii").strip()
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(home.root_certificate.read_text("ascii"))).hexdigest()
    except ValueError:
        raise _no_certificate(home.root_certificate) from None


def keep_fleet_fingerprint(home: Home) -> None:
    """Keep the fleet's identifier through a rollover of the root."""
    if not home.fleet_id.exists():
        write_file(home.fleet_id, fleet_fingerprint(home).encode() + b"\n", secret=False, force=True)


def place_of_registry(home: Home) -> RegistryLocation:
    """The location of the registry of `home`: FLEET_DATABASE, or else fleet.toml.

    Raises: Invalid: `bad-settings`, `bad-database`, `database-file-exposed`. NotFound (`no-database-file`).
    """
    return place_for(home, settings_of(home).database)


def place_for(home: Home, database: Database) -> RegistryLocation:
    said = os.environ.get(DATABASE_VARIABLE)
    try:
        if said and said.startswith(URL_STARTS):
            return parse_database_url(said)  # a password is allowed here: the environment is private to its owner
        if said:
            database = parse_database(said)
        if database.url:
            return parse_database_url(database.url)
    except ValueError as error:
        raise Invalid("bad-database", f"The database of {DATABASE_VARIABLE} {error}.") from error
    return _url_in(Path(database.file)) if database.file else home.registry


def _url_in(file: Path) -> DatabaseUrl:
    try:
        text = read_secret(file, URL_FILE_SIZE_MAX).decode()
    except (OSError, UnicodeDecodeError) as error:
        what = f"The file {file}, which should hold the database's URL, cannot be read: {why_not(error)}."
        raise NotFound("no-database-file", what, "See: database in fleet.toml") from error
    except ExposedFile as error:
        message = f"The file with the database's URL, {error}"
        raise Invalid("database-file-exposed", message, error.advice) from error
    try:
        return parse_database_url(text.partition("\n")[0].strip())
    except ValueError as error:
        raise Invalid("bad-database", f"The first line of {file} {error}.") from error


async def open_registry(home: Home) -> Engine:
    """The registry of `home`, on the newest schema. Raises: FleetError: with the cause."""
    return await open_engine(place_of_registry(home), create=False)


@asynccontextmanager
async def opened(path: Path, lost: Callable[[Refused], None] | None = None) -> AsyncIterator[tuple[Home, Engine]]:
    """The home at `path` and its registry, open. Revocations are written to the journal at both ends.

    `lost` is for those that only read: it gets the refusal of a lost journal, an error otherwise; nothing is written.

    Raises: NotFound: no home there. Unavailable: the registry cannot be opened. Refused: `registry-went-back`,
    `revocation-log-lost`.
    """
    home = open_home(path)
    registry = await open_registry(home)
    try:
        journal = revocation_journal(home)
        try:
            await catch_up(registry, journal)
        except Refused as refused:
            if lost is None or refused.code != "revocation-log-lost":
                raise
            lost(refused)
            yield home, registry
            return
        yield home, registry
        await catch_up(registry, journal)
    finally:
        await registry.close()


def must_be_free(path: Path) -> None:
    """Raises: Conflict (`home-exists`): a home cannot be created at `path`."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise Conflict("home-exists", f"{path} is there already and is not a folder.", "Name another place.")
    if path.is_dir() and any(path.iterdir()):
        what = "a fleet home already" if Home(path).settings_file.exists() else "not empty"
        raise Conflict("home-exists", f"{path} is {what}; nothing was changed.", "Name a new or empty folder.")


@contextmanager
def new_home(path: Path) -> Iterator[Home]:
    """A folder, 0700, in which a home is made: at `path` when the block ends well, and else gone.

    Raises: Conflict (`home-exists`): `path` exists already and is left unchanged.
    """
    must_be_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    import tempfile  # a listing at a home does without

    try:
        building = Home(Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)))
    except OSError as error:
        error.filename = str(path)  # as it was asked for
        raise
    try:
        yield building
        must_be_free(path)
        building.path.rename(path)  # succeeds only where `path` is absent or an empty folder
    except BaseException:
        shutil.rmtree(building.path, ignore_errors=True)
        raise
    sync(path.parent)


def certificate_in(file: Path) -> "x509.Certificate":
    """The first certificate in `file`. Raises: as `certificates_in`."""
    return certificates_in(file)[0]


def certificates_in(file: Path) -> "list[x509.Certificate]":
    """The certificates in the PEM file `file`, at least one. Raises: Invalid (`bad-certificate-file`). OSError."""
    from cryptography import x509  # not every command needs it, and it takes a tenth of a second

    try:
        return x509.load_pem_x509_certificates(read_small(file, CERTIFICATES_SIZE_MAX))
    except ValueError:
        raise _no_certificate(file) from None


def _no_certificate(file: Path) -> Invalid:
    return Invalid("bad-certificate-file", f"{file} holds no certificate in PEM.", "Put it back from a backup.")


def sync_tree(top: Path) -> None:
    """Fsync everything under `top`."""
    for folder, _, files in os.walk(top):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
