"""`firmware-tools`: for authors of a board's firmware."""

import dataclasses
import json
import sys
from typing import BinaryIO

import click

from fleet.config.streams import Program, json_text
from fleet.wire.errors import WireError

try:
    from firmware_tools.message_json import message_from_json, message_to_json, vectors
    from fleet.wire.serial.frames import FrameReader, encode_frame
    from fleet.wire.serial.messages import decode, encode
except ModuleNotFoundError as error:
    raise SystemExit(
        f"Error: The Python module {error.name} is missing. Install the station's part: pip install '.[station]'."
    ) from error

_READ_SIZE = 65536
_JSON_SIZE_MAX = 64 * 1024


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fleet-front-door", prog_name="firmware-tools")
def main() -> None:
    """Tools for firmware of boards that are provisioned over a serial line.

    Shell completion: eval "$(_FIRMWARE_TOOLS_COMPLETE=bash_source firmware-tools)" (zsh_source, fish_source).
    """


@main.command("vectors")
def print_vectors() -> None:
    """Print the serial protocol's test vectors as JSON."""
    click.echo(json.dumps(vectors(), indent=1, ensure_ascii=False))


@main.group()
def frame() -> None:
    """Encode and decode frames."""


@frame.command("encode")
@click.argument("source", type=click.File("rb"), default="-")
@click.option("--binary", is_flag=True, help="Write raw octets instead of hex, to be sent to a port.")
def encode_command(source: BinaryIO, binary: bool) -> None:
    """Encode a message in JSON, from a file or stdin, as a frame.

    \b
    Example:
      echo '{"message": "Finish", "session": "a1b2c3d4e5f60718", "step": 7, "fields": {}}' | firmware-tools frame encode
    """
    try:
        tree = json.loads(source.read(_JSON_SIZE_MAX))
        octets = encode_frame(encode(message_from_json(tree)))
    except (WireError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if binary:
        sys.stdout.buffer.write(octets)
    else:
        click.echo(octets.hex())


@frame.command("decode")
@click.argument("source", type=click.File("rb"), default="-")
@click.option("--binary", is_flag=True, help="Read raw octets from the line instead of hex.")
def decode_command(source: BinaryIO, binary: bool) -> None:
    """Decode the frames in data from a line, read from a file or stdin.

    Prints each message as one JSON object a line, and counts what was dropped on stderr. Exits 1 if there was no
    message, or one that cannot be decoded.
    """
    reader = FrameReader()
    found = bad = 0
    while data := source.read(_READ_SIZE) if binary else source.readline(_READ_SIZE):
        try:
            octets = data if binary else bytes.fromhex(data.decode("ascii"))
        except ValueError as error:
            raise click.ClickException("The input is not hex. For raw octets, pass --binary.") from error
        for payload in reader.feed(octets):
            try:
                click.echo(json_text(message_to_json(decode(payload))))
                found += 1
            except WireError as error:
                click.echo(json.dumps({"error": str(error), "payload": payload.hex()}))
                bad += 1
    dropped = ", ".join(
        f"{name.replace('_', ' ')} {count}" for name, count in dataclasses.asdict(reader.dropped).items()
    )
    click.echo(
        f"{found} message{'' if found == 1 else 's'}, {bad} that cannot be decoded; dropped: {dropped}", err=True
    )
    raise SystemExit(0 if found and not bad else 1)


if __name__ == "__main__":
    main()
