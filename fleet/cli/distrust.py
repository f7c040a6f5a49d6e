"""`fleet distrust`: refuse certificates by what they are, and see their devices come back with new ones."""

import sys
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click

from fleet.cli.bulk import confirm
from fleet.cli.errors import CliError, attempting
from fleet.cli.options import LOCATION, client_at, client_option, location_options, reading_answers, reason_option
from fleet.cli.output import Row, output_option, print_value
from fleet.cli.parameters import DISTRUST_ID, DURATION, MODEL, PAST_TIME, duration_text
from fleet.cli.records import Records, body_of, revocation_options
from fleet.client.client import Client, path_of
from fleet.config.streams import EXIT_FAILED
from fleet.domain.ca_role import ISSUES_TO_DEVICES, CaRole
from fleet.domain.distrust import KEY_MARKS
from fleet.domain.errors import FleetError

COLUMNS = ("id", "model", "ca_key_id", "key_type", "issued_from", "issued_before", "refuses", "devices", "created_at")
PREFIX_MIN = 8  # hex digits of a CA's fingerprint
_PLACE = tuple(name for name in LOCATION if name != "ca")  # --ca is the CA that is distrusted
_ATTEMPTED = "distrusting certificates"


@click.group(invoke_without_command=True)
@click.pass_context
@partial(location_options, names=_PLACE)
@click.option("--model", type=MODEL, help="Of devices of this model.")
@click.option(
    "--ca", "authority", metavar="CA", help="Of this issuing CA: its SHA-256 or its beginning, or a tenant's name."
)
@click.option("--key-type", type=click.Choice(tuple(KEY_MARKS)), help="For keys of this type.")
@click.option(
    "--issued-between",
    "issued",
    type=PAST_TIME,
    nargs=2,
    metavar="FROM TO",
    help="Issued in this time: 12h (ago), 2026-03-01, an RFC 3339 time, or now. Without a zone it is UTC.",
)
@click.option(
    "--spread", type=DURATION, default="10m", show_default=True, help="Time over which their renewals are spread."
)
@click.option("--no-renewal", is_flag=True, help="Refuse them at EST for their renewal, too.")
@click.option("--renew-only", is_flag=True, help="Only ask their devices to renew; refuse nothing yet.")
@click.option("--yes", "is_confirmed", is_flag=True, help="Do not ask for confirmation.")
@click.option("--count", type=click.IntRange(0), metavar="N", help="Do not ask, but refuse unless N devices match.")
@click.option("--dry-run", "is_dry", is_flag=True, help="Count the devices and change nothing.")
@reason_option
@output_option
def distrust(context: click.Context, /, **given: Any) -> None:
    """Refuse certificates by model, issuing CA, key type or time of issue: those to which all that is given applies,
    issued until now.

    Their live MQTT sessions end, and MQTT, EST and the API refuse them, within the time of a revocation and at the same
    cost for any number of devices. Nothing is revoked: EST still accepts such a certificate for its own renewal,
    renewal information says "now", agents renew by themselves, and the new certificate is outside the distrust.

    \b
    Examples:
      fleet distrust --model cam2 --issued-between 2026-03-01 2026-03-02 --dry-run
      fleet distrust --key-type RSA-2048+ --renew-only --spread 7d
      fleet distrust --ca 3f2a9c11 --spread 1h --reason 'HSM lost'
      fleet distrust list

    Where --url needs the server's root CA, set FLEET_CA or give --ca in front of `distrust`.
    """
    if context.invoked_subcommand is not None:
        return
    place = {name: given.pop(name) for name in _PLACE}
    ca: Path | None = context.find_root().params.get("ca")
    with client_at(**place, ca=ca) as client, reading_answers(client):
        _begin(client, given)


def _begin(client: Client, given: dict[str, Any]) -> None:
    if given["no_renewal"] and given["renew_only"]:
        raise click.UsageError("--no-renewal and --renew-only exclude one another.")
    issued: tuple[datetime, datetime] | None = given["issued"]
    named = {name: given[name] for name in ("model", "authority", "key_type") if given[name]}
    if not named and issued is None:
        raise click.UsageError("Name what to distrust: --model, --ca, --key-type, --issued-between, or several.")
    spread: timedelta = given["spread"]
    with attempting(_ATTEMPTED):
        body: dict[str, object] = {
            "model": given["model"],
            "ca": _fingerprint(client, given["authority"]) if given["authority"] else None,
            "key_type": given["key_type"],
            "issued_from": issued[0].isoformat() if issued else None,
            "issued_before": issued[1].isoformat() if issued else None,
            "refuses": not given["renew_only"],
            "may_renew": not given["no_renewal"],
            "spread_seconds": int(spread.total_seconds()),
            "reason": given["reason"],
        }
        plan = client.post("/v1/distrusts", {**body, "dry_run": True})
        matched: int = plan["matched"]
        if given["is_dry"]:
            print_value(plan, given["output"], _planned(plan, spread, issued))
            click.echo(f"{matched} device{'' if matched == 1 else 's'}; nothing was changed.", err=True)
            return
        times = () if issued is None else (f"issued from {_utc(issued[0])} to {_utc(issued[1])}",)
        of = ", ".join([*map(str, named.values()), *times])
        confirm("distrusting", "device", matched, of, wanted=given["count"], is_confirmed=given["is_confirmed"])
        made = client.post("/v1/distrusts", {**body, "expected": matched})
    print_value(made, given["output"], {"id": made["distrust"]["id"], **_planned(made, spread, issued)})


def _utc(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}Z"


def _planned(plan: Row, spread: timedelta, issued: tuple[datetime, datetime] | None) -> Row:
    times = {} if issued is None else {"issued_from": _utc(issued[0]), "issued_before": _utc(issued[1])}
    by_model = ", ".join(f"{model} {count}" for model, count in plan["by_model"].items())
    return {
        "matched": plan["matched"],
        "by_model": by_model,
        "first": ", ".join(plan["first"]),
        **times,
        "spread": duration_text(spread),
    }


def _fingerprint(client: Client, text: str) -> str:
    """The SHA-256 of the issuing CA that `text` names. Raises: CliError: none, or several."""
    digits = text.lower().replace(":", "")
    issuing = [each for each in client.get("/v1/authorities")["items"] if each["role"] in ISSUES_TO_DEVICES]
    found = [each for each in issuing if len(digits) >= PREFIX_MIN and each["sha256"].startswith(digits)]
    found = found or [each for each in issuing if each["tenant"] == text and each["role"] == CaRole.ISSUING]
    if len(found) != 1:
        what = "is no issuing CA" if not found else "is the beginning of several fingerprints"
        raise CliError(_ATTEMPTED, f"{text[:80]!r} {what}", "See: fleet ca show")
    sha256: str = found[0]["sha256"]
    return sha256


def _shown(rule: Row) -> Row:
    """A rule with the progress of its devices."""
    left_by_model = ", ".join(f"{model} {count}" for model, count in rule["left_by_model"].items())
    return {**rule, "left_by_model": left_by_model, "first": ", ".join(rule["first"])}


DISTRUSTS = Records(distrust, DISTRUST_ID, COLUMNS)
DISTRUSTS.list("List the distrusts in force, oldest first.")
DISTRUSTS.show("Show distrusts, with how many devices are still under them.", table=_shown)
DISTRUSTS.act(
    "undo",
    """End distrusts: the certificates that they refused are accepted again, unless they have ended meanwhile.

    \b
    Example:
      fleet distrust undo 91ab0c2d77de --reason 'false alarm'
    """,
    {"state": "undone"},
)


@distrust.command()
@client_option
@click.argument("id_", type=DISTRUST_ID, metavar="DISTRUST_ID")
@click.option("--yes", "is_confirmed", is_flag=True, help="Do not ask for confirmation.")
@click.option("--count", type=click.IntRange(0), metavar="N", help="Do not ask, but refuse unless N devices match.")
@revocation_options
@output_option
def revoke(client: Client, id_: str, is_confirmed: bool, count: int | None, output: str, **given: str) -> None:
    """Revoke, permanently, the devices that are still under a distrust: those that have not renewed. Then the
    certificates under it of all others, superseded ones too: those devices go on with what they have got since.

    CRLs and OCSP tell of these certificates from then on; of the distrust itself only our own listeners know.

    It goes in steps; one that is interrupted is continued by the same command. Undoing the distrust afterwards gives
    nothing back.

    \b
    Example:
      fleet distrust revoke 91ab0c2d77de --reason 'never came back'
    """
    path = path_of("/v1/distrusts/{}", id_)
    done, certificates, failed = 0, 0, []
    with attempting("revoking devices"):
        progress = client.get(path)
        left: int = progress["left"]
        confirm("revoking", "device", left, f"distrust {id_}", wanted=count, is_confirmed=is_confirmed)
        if not left and count is None:
            ending: int = progress["certificates"]
            confirm("revoking", "certificate", ending, f"distrust {id_}", wanted=None, is_confirmed=is_confirmed)
        is_more = True
        while is_more:
            body = {**body_of(**given), "expected": left}
            try:
                step = client.post(f"{path}/revoke", body)
            except FleetError as error:
                # Some may have renewed since they were confirmed; nobody comes under a rule later.
                if error.code != "count-differs" or (now := client.get(path)["left"]) >= left:
                    raise
                left = now
                continue
            done, failed, left = done + step["done"], step["failed"], step["left"]
            certificates += step["certificates"]
            is_more = (left or step["certificates_left"]) and (step["done"] or step["certificates"])
    print_value({"id": id_, "done": done, "certificates": certificates, "left": left, "failed": failed}, output)
    if left:
        sys.exit(EXIT_FAILED)
