"""`fleet cert`: inspect certificate files, and convert one form into another."""

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
from cryptography.utils import CryptographyDeprecationWarning

from fleet.cli.cert_report import certificate_facts, key_facts, list_facts, request_facts, unsupported_facts
from fleet.cli.errors import CliError, attempting
from fleet.cli.output import output_option, print_value
from fleet.cli.passwords import PasswordSource, password_options
from fleet.config.durable_files import write_file
from fleet.config.streams import printable
from fleet.wire.encodings.bundle import (
    FORM_BY_SUFFIX,
    INPUT_SIZE_MAX,
    Bundle,
    Form,
    PasswordNeeded,
    WouldLose,
    WrongPassword,
)
from fleet.wire.encodings.reading import read
from fleet.wire.encodings.recognize import recognize
from fleet.wire.encodings.writing import has_room_for_key, holds_secret, losses, write
from fleet.wire.errors import WireError

_STANDARD_STREAM = "-"
_FOR_PROGRAMS = frozenset({"expires_in_seconds"})  # people read the sentence


@click.group()
def cert() -> None:
    """Inspect certificate files, and convert one form into another.

    Reads PEM, DER (.cer .crt .der), PKCS#7 (.p7b .p7c) and PKCS#12 (.p12 .pfx). The format is recognized by content,
    not by the file name.

    \b
    Exit codes: 0 done, 1 refused or failed, 2 wrong use.
    """
    # The library warns of certificates that break RFC 5280; the report says so in its own words.
    warnings.simplefilter("ignore", CryptographyDeprecationWarning)


input_password_options = password_options(
    "Password of the file that is read: the first line of FILE.",
    "Password of the file that is read: from the environment.",
)


@cert.command(short_help="Show what is in a file.")
@click.argument("file")
@input_password_options
@output_option
def inspect(file: str, password: PasswordSource, output: str) -> None:
    """Show what is in FILE ("-" for standard input).

    Each certificate with its names, issuer, validity, usages and fingerprints; whether there is a private key, and
    which certificate it belongs to; certificate requests and CRLs. Key material is never shown. The password of a
    PKCS#12 file is prompted for on the terminal, unless one of the options gives it.

    \b
    Examples:
      fleet cert inspect pump-7.pem
      fleet cert inspect pump-7.p12 --password-file secret.txt
      fleet cert inspect chain.p7b -o json | jq '.certificates[].not_after'
      openssl s_client -connect localhost:8883 </dev/null | fleet cert inspect -

    \b
    Exit codes: 0 shown (expired or not), 1 it cannot be read, 2 wrong use.
    """
    data = _input(file)
    bundle = _read(file, data, password, "the file", unsupported_too=True)
    now = datetime.now(UTC)
    facts = {
        "file": file,
        "content": str(recognize(data)),
        "certificates": [certificate_facts(bundle, index, now) for index in range(len(bundle.certificates))]
        + [unsupported_facts(*each) for each in bundle.unsupported],
        "private_key": key_facts(bundle),
        "locked_keys": bundle.locked_keys,
        "requests": [request_facts(request) for request in bundle.requests],
        "revocation_lists": [list_facts(each, now) for each in bundle.revocation_lists],
        "others": bundle.others,
    }
    if output == "json":
        print_value(facts, output)
    else:
        _print_for_people(facts)


def _print_for_people(facts: Mapping[str, Any]) -> None:
    click.echo(f"{facts['file']}: {facts['content']}")
    for title, key in (
        ("Certificate", "certificates"),
        ("Certificate request", "requests"),
        ("Revocation list", "revocation_lists"),
    ):
        sections = facts[key]
        for number, section in enumerate(sections, 1):
            click.echo(f"\n{title} {number} of {len(sections)}" if len(sections) > 1 else f"\n{title}")
            shown = {
                name: fact for name, fact in section.items() if fact not in (None, [], ()) and name not in _FOR_PROGRAMS
            }
            print_value(shown, "table")
    key = facts["private_key"]
    if key is not None:
        mate = key["matches_certificate"]
        belongs = f"belongs to certificate {mate}" if mate else "belongs to none of the certificates here"
        if not facts["certificates"]:
            belongs = f"key sha256 {key['key_sha256'].hex()}"
        click.echo(f"\nPrivate key: {key['key_type']}, {belongs}")
    if facts["locked_keys"]:
        click.echo("\nPrivate key: encrypted; give its password to see which certificate it belongs to")
    for other in facts["others"]:
        click.echo(f"\nAlso there: {printable(other)}")


@cert.command(short_help="Convert one form into another.")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option(
    "--to",
    "form_name",
    type=click.Choice([str(form) for form in Form]),
    help="Form of OUT, if its suffix does not say.",
)
@input_password_options
@password_options(
    "Password to protect OUT with: the first line of FILE.",
    "Password to protect OUT with: from the environment.",
    option="out-password",
)
@click.option("--drop", is_flag=True, help="Leave out what the form of OUT can't hold, instead of refusing.")
@click.option("--force", is_flag=True, help="Overwrite OUT.")
def convert(
    source: str,
    target: str,
    form_name: str | None,
    password: PasswordSource,
    out_password: PasswordSource,
    drop: bool,
    force: bool,
) -> None:
    """Convert the file IN into the file OUT; "-" is standard input or output.

    The suffix of OUT selects the form, and --to overrides it:

    \b
      pem         .pem            everything; a key is PKCS#8, encrypted if an output password is given
      der         .cer .crt .der  a single certificate (or request, revocation list or key)
      p7b         .p7b .p7c       certificates and revocation lists, no key
      p7b-pem     --to p7b-pem    the same as text
      p12         .p12 .pfx       key, certificates and their names, encrypted (AES-256, PBKDF2)
      p12-legacy  --to p12-legacy the same for old Windows and Java (3DES, SHA-1: weak)
      key         .key            the private key alone, as PEM

    If the form of OUT cannot hold something, that is named and nothing is written, unless --drop is given. OUT is
    written atomically, with mode 0600 when it holds a key, and is not overwritten without --force. Passwords come
    from a file, the environment or a prompt, never from the command line, where other users of the machine could read
    them.

    \b
    Examples:
      fleet cert convert pump-7.p12 pump-7.pem --password-file secret.txt --drop
      fleet cert convert pump-7.pem pump-7.pfx --out-password-env PFX_PASSWORD
      fleet cert convert chain.pem chain.p7b
      fleet cert convert root.cer - --to pem

    \b
    Exit codes: 0 written, 1 refused or failed, 2 wrong use.
    """
    form = Form(form_name) if form_name else _form_of(target)
    data = _input(source)
    bundle = _read(source, data, password, "the input file")
    if bundle.locked_keys and not drop and has_room_for_key(bundle, form):
        bundle = _opened(source, data, password.given_or_asked("the input file"), read)
    attempted = f"converting '{source}' to {form}"
    left_out = losses(bundle, form)
    if left_out and not drop:
        problem = str(WouldLose(form, left_out))
        raise CliError(attempted, problem, "Add --drop to leave that out, or choose another form with --to")
    if target != _STANDARD_STREAM and not force and os.path.lexists(target):
        raise _taken(target)  # before a password is asked for; the write itself checks again
    secret = out_password.given("the output file")
    if secret is None and form in (Form.P12, Form.P12_LEGACY):
        secret = out_password.given_or_asked("the output file", confirm=True)
    with attempting(attempted):
        converted = write(bundle, form, secret, drop=True)
    _output(target, converted, secret=holds_secret(bundle, form), force=force)
    click.echo(f"{target}: written as {form}", err=True)  # OUT may be standard output
    for each in left_out:
        click.echo(f"Left out: {each}", err=True)
    if holds_secret(bundle, form) and secret is None:
        click.echo("Note: the private key in it is not encrypted; give an output password to protect it.", err=True)


def _form_of(target: str) -> Form:
    suffix = Path(target).suffix.lower()
    form = FORM_BY_SUFFIX.get(suffix)
    if form is None:
        known = " ".join(FORM_BY_SUFFIX)
        what = f"the suffix '{suffix}' is not known" if suffix else f"'{target}' has no suffix"
        raise click.UsageError(f"choosing the form of OUT: {what}. Use one of {known}, or --to {'|'.join(Form)}.")
    return form


def _input(name: str) -> bytes:
    """The content of the file, a byte more than the cap at most."""
    with attempting(f"reading '{name}'"), click.open_file(name, "rb") as file:
        return bytes(file.read(INPUT_SIZE_MAX + 1))


def _read(name: str, data: bytes, password: PasswordSource, purpose: str, *, unsupported_too: bool = False) -> Bundle:
    """What `data` holds. A password is asked for only if the file can't be opened without."""
    reader = partial(read, unsupported_too=unsupported_too)
    try:
        return _opened(name, data, password.given(purpose), reader)
    except PasswordNeeded:
        return _opened(name, data, password.given_or_asked(purpose), reader)


def _opened(name: str, data: bytes, password: bytes | None, reader: Callable[[bytes, bytes | None], Bundle]) -> Bundle:
    attempted = f"reading '{name}'"
    try:
        return reader(data, password)
    except PasswordNeeded:
        raise
    except WrongPassword as error:
        raise CliError(attempted, str(error), "Check the password") from error
    except WireError as error:
        raise CliError(attempted, str(error), "Check that it is the right file and that it is whole") from error


def _taken(target: str) -> CliError:
    return CliError(f"writing '{target}'", "the file is there already", "Add --force to overwrite it")


def _output(target: str, data: bytes, *, secret: bool, force: bool) -> None:
    with attempting(f"writing '{target}'"):
        if target == _STANDARD_STREAM:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        try:
            write_file(Path(target), data, secret=secret, force=force)
        except FileExistsError:
            raise _taken(target) from None
