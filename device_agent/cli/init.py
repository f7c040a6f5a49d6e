"""`device-agent init`: a device's home."""

import shlex
from dataclasses import replace
from pathlib import Path

import click

from device_agent.cli.options import pass_home, usage_errors
from device_agent.config.agent_config import NewHome, must_be_free, write_config
from device_agent.config.endpoints import parse_endpoint
from device_agent.store.atomic_files import read_file
from device_agent.store.key_store import (
    FILE,
    KEY_STORES,
    PKCS11,
    TPM2,
    KeyStore,
    must_have_provider,
    openssl_value,
    token_uri,
)
from fleet.est_client.arguments import check_device_id, check_printable
from fleet.est_client.tls import client_context
from fleet.est_client.url import parse_est_url
from fleet.wire.ca_file import ca_pem


@click.command()
@click.option("--device-id", required=True, help="The device's id in the fleet's registry.")
@click.option(
    "--est", "est_url", required=True, metavar="URL", help="EST server: https://HOST:PORT[/.well-known/est/LABEL]."
)
@click.option("--mqtt", required=True, metavar="HOST:PORT", help="The fleet's MQTT gateway; or wss://HOST/PATH.")
@click.option(
    "--ca",
    "ca_file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The fleet's root CA (PEM, DER or PKCS#7); it is copied into the home as PEM.",
)
@click.option("--hardware-serial", default="", help="serialNumber of the certificate's subject.")
@click.option(
    "--key-store",
    type=click.Choice(KEY_STORES),
    default=FILE,
    show_default=True,
    help="Where private keys are kept: in files, in a TPM 2.0, or in a PKCS#11 token.",
)
@click.option("--tcti", default="", metavar="NAME:CONF", help="How the TPM is reached, as tpm2-tss names it.")
@click.option("--key-uri", default="", metavar="pkcs11:...", help="The PKCS#11 token (RFC 7512).")
@click.option("--spool", is_flag=True, help="Store messages in the home until they are delivered.")
@pass_home
def init(
    home: Path,
    device_id: str,
    est_url: str,
    mqtt: str,
    ca_file: Path,
    hardware_serial: str,
    key_store: str,
    tcti: str,
    key_uri: str,
    spool: bool,
) -> None:
    """Create the device's home. Refused if it exists."""
    with usage_errors():
        check_device_id(device_id)
        check_printable(hardware_serial, "The hardware serial")
        parse_est_url(est_url)
        server = parse_endpoint(mqtt)
        client_context(ca_file)
        anchors = ca_pem(read_file(ca_file)).encode()
        keys = KeyStore(home, key_store, openssl_value(tcti), token_uri(key_uri) if key_uri else "")
        if keys.kind == PKCS11 and not keys.uri:
            raise click.UsageError("--key-store pkcs11 needs --key-uri.")
        if (keys.tcti and keys.kind != TPM2) or (keys.uri and keys.kind != PKCS11):
            raise click.UsageError("--tcti is for --key-store tpm2, --key-uri for --key-store pkcs11.")
    must_be_free(home)
    if keys.kind != FILE:
        must_have_provider(keys)
    new = NewHome(device_id, est_url, server.host, server.port, anchors, hardware_serial, spool, server.path)
    path = write_config(home, replace(new, key_store=keys.kind, tcti=keys.tcti, key_uri=keys.uri))
    click.echo(f"Wrote {path}. Next: device-agent enroll --home {shlex.quote(str(home))} --token-file FILE")
