"""`fleet device`: register devices, look them up, tag them, suspend and revoke them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from fleet.cli.bulk import Rest, Selection, act_by_filter, ids_or_filter, query_of
from fleet.cli.device_messages import COMMANDS
from fleet.cli.errors import CliError, attempting
from fleet.cli.options import FILE, client_option, limit_option
from fleet.cli.output import Row, Seen, output_option, print_rows, print_value
from fleet.cli.parameters import DEVICE_ID, FILTER, GROUP, MODEL, SERIAL, TAG, TAG_KEY, TIME, wrong_use
from fleet.cli.records import Option, Records, body_of, crl_reason_option, print_each, revocation_options, same
from fleet.client.client import Client, path_of
from fleet.domain.credential import USABLE
from fleet.domain.device import OUT_OF_SERVICE, DeviceFilter, DeviceState, Place, Tags
from fleet.domain.device_filter import parse_filter, parse_place, place_text
from fleet.domain.model_rules import ModelKind
from fleet.domain.tags import Retag, checked_groups, checked_tags

COLUMNS = ("id", "model", "kind", "state", "hardware_serial", "created_at", "expires_at", "tags", "groups")
CERTIFICATE = ("serial", "state", "not_before", "not_after", "sha256", "revoked_at", "crl_reason")
"""What a table shows of each certificate."""
SERIAL_PREFIX_MIN = 6  # digits: fewer are a mistyped serial number rather than the beginning of one
NO_CERTIFICATE = "no valid certificate: it takes a new token, or another right, to enroll again"
SESSION = ("client_id", "state", "connected_at", "seen_at", "reason", "address")
"""Of each session."""
_SHORTENED = (
    "state_change", "certificates", "distrusted_by", "sessions", "usable_certificates", "usable_until", "last_refusal",
)  # fmt: skip


@click.group()
def device() -> None:
    """Devices: register them, look them up, tag them, suspend and revoke them."""


def _listed(row: Row) -> Row:
    """For people: the expiry of a certificate that is of no use any more is none."""
    ends = row["expires_at"]
    is_ahead = ends is not None and datetime.fromisoformat(ends) > datetime.now(UTC)
    return {**row, "expires_at": None} if is_ahead and row.get("usable_until", ends) is None else row


def _in_short(shown: Row) -> Row:
    value = {key: item for key, item in _listed(shown).items() if key not in _SHORTENED}
    if change := shown.get("state_change"):
        state = shown["state"]
        value |= {f"{state} at": change["at"], f"{state} by": change["actor"], "reason": change["reason"]}
    if rules := shown.get("distrusted_by"):
        value["distrusted by"] = ", ".join(f"{rule['id']} ({rule['reason'] or 'no reason given'})" for rule in rules)
    if refusal := shown.get("last_refusal"):
        value["last refused"] = f"{refusal['refused_at']} {refusal['action']} {refusal['code']} {refusal['address']}"
    if shown.get("usable_certificates") == 0:
        value |= {"expires_at": None, "problem": NO_CERTIFICATE}
    value["certificates"] = [{key: held[key] for key in CERTIFICATE if key in held} for held in shown["certificates"]]
    if sessions := shown.get("sessions"):
        value["sessions"] = [{key: each[key] for key in SESSION} for each in sessions]
    return value


def _with_all(client: Client, each: str) -> Row:
    sessions = client.get(path_of("/v1/sessions/{}", each))["sessions"]
    found = {**DEVICES.get_with_certificates(client, each), **({"sessions": sessions} if sessions else {})}
    if found["state"] == DeviceState.ACTIVE:
        found["usable_certificates"] = _usable(found["certificates"], found.get("usable_until"))
    return found


def _usable(held: Sequence[Row], until: str | None) -> int:
    """How many a device may use of those held, by what the API says of the last: one that ends later is distrusted."""
    if until is None:
        return 0
    now, last = datetime.now(UTC), datetime.fromisoformat(until)
    return sum(each["state"] in USABLE and now < datetime.fromisoformat(each["not_after"]) <= last for each in held)


DEVICES = Records(device, DEVICE_ID, COLUMNS)
DEVICES.show("Show devices with their certificates, oldest first, and their MQTT sessions.", _with_all, _in_short)


@device.command()
@client_option
@click.argument("device_id", type=DEVICE_ID)
@click.option("--model", required=True, type=MODEL, help="Its model; see: fleet model list")
@click.option("--serial", "hardware_serial", default="", help="The manufacturer's serial number, for its certificates.")
@click.option("--tag", "tags", type=TAG, multiple=True, help="A label to find it by; may be repeated.")
@click.option("--group", "groups", type=GROUP, multiple=True, help="A group that it is in; may be repeated.")
@output_option
def add(client: Client, device_id: str, tags: Tags, groups: tuple[str, ...], output: str, **terms: str) -> None:
    """Register a device.

    Then DEVICE_ID can be given a token (fleet token create --device DEVICE_ID), or be provisioned by a station.

    \b
    Example:
      fleet device add cam-7 --model cam2 --tag lot=L7 --tag 'site=Oslo East' --group pilot
    """
    with wrong_use():
        labels = {"tags": dict(checked_tags(tags)), "groups": checked_groups(groups)}
    with attempting(f"adding device '{device_id}'"):
        added = client.post("/v1/devices", {"id": device_id, **terms, **labels})
    print_value(added, output)


@device.command(name="import")
@client_option
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--errors", "errors_file", type=FILE, help="Where refused rows are listed, as CSV; FILE.errors unless given."
)
@output_option
def import_(client: Client, file: Path, errors_file: Path | None, output: str) -> None:
    """Register the devices of the manifest FILE, or of standard input when FILE is -.

    FILE is CSV with a line of column names, JSON lines, or a JSON array of objects. Columns: device_id and model; a
    hardware_serial, which its IDevID certificate must contain, or a key_sha256, the SHA-256 of its public key's DER,
    with which a device enrolls without any other proof, or both; tags (in CSV lot=L7;site=Oslo) and groups
    (pilot;canary).

    Rows are independent: one that is refused is listed in the errors file, and the others are taken. That file takes
    the place of an earlier import's, and of nothing else. The same row again
    changes nothing, so an import that was interrupted is resumed by running it again. A row that differs from what was
    imported before, or has the serial or key of another device, is refused.

    Exit code 1 when a row was refused or could not be read.

    \b
    Examples:
      fleet device import lot-7.csv
      zcat fleet.jsonl.gz | fleet device import - --errors refused.csv
    """
    from fleet.cli.device_import import import_manifest

    import_manifest(client, file, errors_file, output)


@device.command(name="list")
@client_option
@click.option("--model", type=MODEL, help="Only devices of this model.")
@click.option(
    "--kind", type=click.Choice([kind.value for kind in ModelKind]), help="Only devices, or only applications."
)
@click.option("--state", type=click.Choice([state.value for state in DeviceState]), help="Only devices in this state.")
@click.option("--tag", "tags", type=TAG, multiple=True, help="Only devices with this tag; may be repeated.")
@click.option("--group", type=GROUP, help="Only devices in this group.")
@click.option(
    "--expires-before",
    type=TIME,
    help="Only devices in service whose newest certificate expires before then, the soonest first: 30d or 2026-12-01.",
)
@click.option(
    "--filter",
    "text",
    type=FILTER,
    help="In place of the others, but --kind, as in acts on many: 'model=cam2 and lot=L7 and expires<30d'.",
)
@click.option("--after", metavar="POSITION", default="", help="Resume after this position, as --limit printed it.")
@limit_option
@output_option
def list_(
    client: Client,
    kind: str | None,
    state: str | None,
    tags: Tags,
    text: str | None,
    after: str,
    limit: int | None,
    output: str,
    **more: Any,
) -> None:
    """List devices, all of them unless --limit is given.

    They come by id, or with --expires-before by the expiry of their certificates.

    \b
    Examples:
      fleet device list --model cam2 --state suspended --tag lot=L7
      fleet device list --kind application
      fleet device list --expires-before 30d -o json
      fleet device list --filter 'lot=L7 and site="Oslo East"'
    """
    if text is not None and (state or tags or any(more.values())):
        raise click.UsageError("--filter takes the place of the others: write them into it.")
    with wrong_use():
        if text is not None:
            where = parse_filter(text, datetime.now(UTC))
        else:
            by_state = DeviceState(state) if state else None
            where = DeviceFilter(state=by_state, tags=tuple(sorted(set(tags))), **more)
        parse_place(after, where)
    with attempting("listing the devices"):
        listing = Seen(client.items("/v1/devices", limit, after=after or None, **query_of(where, kind)))
        print_rows(
            COLUMNS, listing if output == "json" else map(_listed, listing), output, "There are no such devices."
        )
    if listing.last is not None and listing.count == limit:
        last = listing.last
        expires_at = datetime.fromisoformat(last["expires_at"]) if where.expires_before is not None else None
        click.echo(f"There may be more: --after {place_text(Place(last['id'], expires_at))}", err=True)


def _act(verb: str, text: str, options: Option = same) -> None:
    """Declare the command `verb`, whose help is `text`."""
    doing = f"{verb.removesuffix('e')}ing"

    @device.command(verb, help=text)
    @ids_or_filter()
    @options
    def act(selection: Selection, **given: str) -> None:
        def acted(device_id: str) -> Row:
            body = body_of(reason=selection.reason, **given)
            return dict(selection.client.post(f"{DEVICES.path(device_id)}/{verb}", body))

        if selection.text is not None:
            act_by_filter(selection, doing, {"act": verb, **body_of(**given)})
        else:
            print_each(selection.ids, f"{doing} device '{{}}'", acted, selection.output, _after_act)


def _after_act(row: Row) -> Row:
    """For people: certificates of a device that is out of service for ever are revoked, whenever they expire."""
    return {**row, "expires_at": None} if row["state"] in OUT_OF_SERVICE else row


_act(
    "suspend",
    """Refuse devices until they are resumed.

    Name them by DEVICE_ID, or select them with --filter. Live sessions are closed at once; certificates stay valid.

    \b
    Examples:
      fleet device suspend cam-7 --reason 'being repaired'
      fleet device suspend --filter 'lot=L7 and state=active' --dry-run
    """,
)
_act(
    "resume",
    """Accept suspended devices again.

    Name them by DEVICE_ID, or select them with --filter.

    \b
    Example:
      fleet device resume --filter 'lot=L7 and state=suspended' --count 12
    """,
)


_act(
    "revoke",
    """Revoke devices permanently.

    Name them by DEVICE_ID, or select them with --filter. Their certificates, earlier ones included, are revoked and
    listed in CRLs, their keys never enroll again, and live sessions are closed at once.

    This cannot be undone: hardware that is to be used again is registered under a new id. To refuse a device for a
    while, suspend it. Of one that is revoked or retired already, --crl-reason keyCompromise changes what CRLs say.

    \b
    Examples:
      fleet device revoke cam-7 --reason lost
      fleet device revoke cam-7 --crl-reason keyCompromise
    """,
    crl_reason_option,
)


@device.command(name="revoke-certificate")
@client_option
@click.argument("device_id", type=DEVICE_ID)
@click.argument("serial", type=SERIAL)
@revocation_options
@output_option
def revoke_certificate(client: Client, device_id: str, serial: str, output: str, **given: str) -> None:
    """Revoke one certificate of a device, by its serial number in hex, or the beginning of it (6 digits or more).

    The device stays in service with its others: this is for one that was superseded, and whose key may have leaked.
    CRLs and OCSP list it, its key never enrolls again, and a session that uses it is closed. A device whose only
    certificate it is needs another right, such as a token, to enroll again. With keyCompromise, all of the device's
    certificates for the same key are revoked.

    \b
    Example:
      fleet device show cam-7
      fleet device revoke-certificate cam-7 4f2a9c --crl-reason superseded
    """
    with attempting(f"revoking certificate '{serial}' of device '{device_id}'"):
        whole = _serial_of(client, device_id, serial)
        done = client.post(path_of("/v1/devices/{}/credentials/{}/revoke", device_id, whole), body_of(**given))
    print_value(done, output)


def _serial_of(client: Client, device_id: str, text: str) -> str:
    """The serial number of the device's certificate that has or begins with `text`. Raises: NotFound. CliError."""
    held: set[str] = {each["serial"] for each in client.all_items(f"{DEVICES.path(device_id)}/credentials")}
    found: set[str] = {each for each in held if each.startswith(text)} if len(text) >= SERIAL_PREFIX_MIN else set()
    if text in held or not found:
        return text
    if len(found) > 1:
        attempted = f"revoking a certificate of device '{device_id}'"
        raise CliError(attempted, f"{len(found)} serial numbers begin with {text}", "Give more digits of it")
    return found.pop()


_act(
    "retire",
    """Take devices out of service permanently, as planned.

    Name them by DEVICE_ID, or select them with --filter.

    \b
    Example:
      fleet device retire --filter 'model=cam1' --dry-run
    """,
)


@device.command()
@ids_or_filter(Rest.TAGS)
@click.option("--remove", multiple=True, type=TAG_KEY, help="A tag to remove; may be repeated.")
@click.option("--group", "join", multiple=True, type=GROUP, help="A group to add it to; may be repeated.")
@click.option("--ungroup", "leave", multiple=True, type=GROUP, help="A group to remove it from; may be repeated.")
def tag(selection: Selection, remove: tuple[str, ...], join: tuple[str, ...], leave: tuple[str, ...]) -> None:
    """Change tags and groups of devices.

    Name them by DEVICE_ID, in front of the tags, or select them with --filter.

    \b
    Examples:
      fleet device tag cam-7 lot=L7 site=Oslo --remove old --group pilot --ungroup canary
      fleet device tag --filter 'lot=L7 and state=active' --group recall
    """
    with wrong_use():
        retag = Retag(selection.tags, remove, join, leave)
    tags = {**dict.fromkeys(retag.remove), **dict(retag.tags)}
    if selection.text is not None:
        act_by_filter(selection, "tagging", {"act": "tag", "tags": tags, "join": join, "leave": leave})
        return

    def tagged(device_id: str) -> Row:
        """Tags are merged (RFC 7396), groups replaced: these are read first."""
        changes: dict[str, object] = {"tags": tags, "reason": selection.reason}
        etag = "*"
        if join or leave:
            before, etag = selection.client.ask("GET", DEVICES.path(device_id))
            changes["groups"] = sorted((set(before["groups"]) - set(leave)) | set(join))
        return dict(selection.client.patch(DEVICES.path(device_id), changes, etag))

    print_each(selection.ids, "tagging device '{}'", tagged, selection.output)


for each in COMMANDS:
    device.add_command(each)
