"""`fleet webhook`: what somebody who writes one needs."""

from pathlib import Path

import click

from fleet.cli.errors import attempting
from fleet.cli.options import home_option
from fleet.cli.output import output_option, print_value
from fleet.home.layout import open_home
from fleet.home.pki import load_webhook_signer
from fleet.webhook.signing import ALGORITHM, TAG


@click.group()
def webhook() -> None:
    """Webhooks that authorize first certificates (fleet model set NAME --webhook URL).

    Requests, responses and the signature are described in fleet/webhook/README.md.
    """


@webhook.command()
@home_option("the key is read from the home")
@output_option
def key(home: Path, output: str) -> None:
    """Print the public key that verifies the signature of this fleet's webhook requests.

    \b
    Example:
      fleet webhook key > fleet-webhook.pub
    """
    with attempting("reading the webhooks' key"):
        signer = load_webhook_signer(open_home(home))
    if output == "json":
        print_value({"keyid": signer.key_id, "alg": ALGORITHM, "tag": TAG, "public_key": signer.public_pem()}, output)
        return
    click.echo(signer.public_pem(), nl=False)
    click.echo(f"keyid {signer.key_id}, alg {ALGORITHM}, tag {TAG}", err=True)
