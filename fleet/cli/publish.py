"""`fleet publish`: CRLs and CA certificates as files, for a web server or a CDN."""

import re
import ssl
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import click

from fleet.cli.errors import CliError, attempting
from fleet.cli.long_work import noting_interrupts
from fleet.cli.options import client_option
from fleet.cli.output import output_option, print_value
from fleet.client.client import Client, bad_answer, path_of
from fleet.config.durable_files import write_file
from fleet.config.small_files import LargeFile, read_small
from fleet.domain.ca_role import CaRole
from fleet.domain.distribution import CA_NAME_PATTERN, CRL_KIND_PATTERN, PLAIN, ca_name, ca_path, crl_path
from fleet.wire.armor import unwrap

FOLLOW_SECONDS = 1.0  # from one look to the next: a CRL is signed within `crl.max_delay` of a revocation, 5 s
UNREAD = ".changed"  # durable: a command that failed, or was killed with us, is run again though no file changes


@click.command()
@client_option
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--follow", is_flag=True, help="Go on, and write what is published anew, until interrupted.")
@click.option(
    "--run", "command", metavar="COMMAND", help="A shell command to run when files have changed: 'nginx -s reload'."
)
@output_option
def publish(client: Client, folder: Path, follow: bool, command: str | None, output: str) -> None:
    """Write every CRL and CA certificate into DIR, at the paths at which the publish listener serves them.

    A web server that has DIR as its root takes the listener's place, apart from OCSP. For programs that read files
    there are ca.pem, all CAs but the operators', crl.pem, a CRL of each, and trust.pem, both. Each file is replaced in
    one step. Without --follow, run it again as often as revocations are to be seen, and before the CRLs' nextUpdate.

    With --follow a revocation is in DIR a second after it is in a CRL, and COMMAND has the relying party read it. What
    fails is reported, and tried again every second. DIR/.changed says that files have changed since COMMAND last
    succeeded: the next run with --run does it, even if no further file changes.

    \b
    Example:
      fleet publish /srv/pki
      fleet publish /var/lib/fleet-pki --follow --run 'nginx -s reload'
    """
    published = PublishedFolder(client, folder)
    with attempting(f"publishing into {folder}"):
        changed = published.update()
    print_value({"folder": str(folder), "files": published.count, "changed": changed}, output)
    if not published.has_crls:
        click.echo("There is no CRL yet: fleet serve signs them, or fleet crl issue.", err=True)
    if follow:
        _follow(published, command)
    elif not _run_if_due(published, command):
        raise CliError(f"publishing into {folder}", "the files are written, and the command failed")


def _follow(published: "PublishedFolder", command: str | None) -> None:
    """Until SIGINT or SIGTERM."""
    reported = ""
    with noting_interrupts() as interrupts:
        while not interrupts:
            _run_if_due(published, command)
            time.sleep(FOLLOW_SECONDS)
            try:
                with attempting(f"publishing into {published.folder}"):
                    published.update()
                reported = ""
            except CliError as error:
                if error.message != reported:
                    error.show()
                reported = error.message


def _run_if_due(published: "PublishedFolder", command: str | None) -> bool:
    """Whether the shell command, if there is one and files have changed, succeeds; its output is ours."""
    if command is None or not published.unread.exists():
        return True
    status = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, check=False).returncode  # noqa: S602 - asked for
    if status:
        click.echo(f"The command ended with status {status}: {command}", err=True)
        return False
    with attempting(f"publishing into {published.folder}"):
        published.unread.unlink(missing_ok=True)
    return True


class PublishedFolder:
    """A folder with what is published; looks again at no CRL that it has written."""

    def __init__(self, client: Client, folder: Path) -> None:
        self._client, self.folder = client, folder
        self.unread = folder / UNREAD
        """There from before the first file is changed until the command has succeeded."""
        self._crls: dict[str, tuple[tuple[int, str], str]] = {}
        """Number, thisUpdate and PEM of each CRL, by path."""
        self.count = 0
        """Files."""

    @property
    def has_crls(self) -> bool:
        return bool(self._crls)

    def update(self) -> int:
        """Write what has changed; the number of files that have. Raises: FleetError, OSError."""
        files, trusted = self._certificates()
        plain = ""
        for head in self._client.items("/v1/crls"):
            path = _path(head)
            issued = head["number"], head["this_update"]  # another CA's software may give no numbers
            if self._crls.get(path, (None,))[0] != issued:
                pem = self._client.get(path_of("/v1/crls/{}/{}", head["ca"], head["crl"]))["pem"]
                self._crls[path] = issued, pem
            pem = self._crls[path][1]
            files[path] = _der(pem)
            if head["crl"] == PLAIN and head["ca"] in trusted:
                plain += pem
        certificates = "".join(trusted.values())
        for name, text in (("ca.pem", certificates), ("crl.pem", plain), ("trust.pem", certificates + plain)):
            files[name] = text.encode("ascii")
        self.count = len(files)
        changed = [(file, data) for path, data in files.items() if not _holds(file := self._file(path), data)]
        if changed:
            _write(self.unread, b"")
        for file, data in changed:
            _write(file, data)
        return len(changed)

    def _file(self, path: str) -> Path:
        return self.folder / path.lstrip("/")

    def _certificates(self) -> tuple[dict[str, bytes], dict[str, str]]:
        """The files of the CA certificates, and, by CA, the PEM of those that sign for devices and servers."""
        from cryptography import x509

        from fleet.ca.key_identifiers import identifier_of

        files: dict[str, bytes] = {}
        trusted: dict[str, str] = {}
        for each in self._client.get("/v1/authorities")["items"]:
            der = ssl.PEM_cert_to_DER_cert(each["pem"])
            name = ca_name(identifier_of(x509.load_der_x509_certificate(der)))
            files[ca_path(name)] = der
            if each["role"] != CaRole.OPERATORS:
                trusted[name] = each["pem"]
        return files, trusted


def _path(head: Mapping[str, object]) -> str:
    """Its path beneath the folder, whatever a server says."""
    ca, kind = str(head["ca"]), str(head["crl"])
    if not re.search(CA_NAME_PATTERN, ca) or not re.search(CRL_KIND_PATTERN, kind):
        raise bad_answer("a CRL has no name that it could have")
    return crl_path(ca, kind)


def _der(pem: str) -> bytes:
    der = unwrap("".join(pem.splitlines()[1:-1]).encode())
    if der is None:
        raise bad_answer("a CRL is not PEM")
    return der


def _holds(file: Path, data: bytes) -> bool:
    with suppress(FileNotFoundError, LargeFile):
        return read_small(file, len(data)) == data
    return False


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, data, secret=False, force=True)
