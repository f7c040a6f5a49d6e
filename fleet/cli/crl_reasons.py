"""`--crl-reason` of the commands that revoke."""

import click

from fleet.domain.crl import GIVEN_REASONS, CrlReason

crl_reason_option = click.option(
    "--crl-reason",
    type=click.Choice(list(GIVEN_REASONS)),
    default=CrlReason.UNSPECIFIED.text,
    help="The reason that CRLs and OCSP give (RFC 5280, 5.3.1).",
)


def given_crl_reason(text: str) -> dict[str, str]:
    """`text` as part of a body; nothing for unspecified."""
    return {} if text == CrlReason.UNSPECIFIED.text else {"crl_reason": text}
