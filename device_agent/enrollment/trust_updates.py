"""Trust anchors as the fleet changes them: new roots, and which remain after a trust update. Needs `cryptography`."""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from device_agent.config.agent_config import AgentConfig
from device_agent.log.event_log import EventLog
from device_agent.store.atomic_files import write_atomically
from device_agent.store.root_rollover import is_predecessor, load_anchors, new_roots
from fleet.est_client.certificate_checks import find_chain
from fleet.est_client.client import EstClient
from fleet.est_client.errors import EstBadAnswer, EstError
from fleet.wire.errors import WireError
from fleet.wire.trust_update import decode_trust_update, key_name


def apply_trust_update(data: bytes, anchors: Sequence[x509.Certificate], now: datetime) -> tuple[x509.Certificate, ...]:
    """Those of `anchors` that remain. An update retires predecessors only: anchors with the name of the anchor that its
    signer chains to, that begin before it. So no holder of an old root's key can retire a newer root, the last anchor
    always remains, and an update that is replayed does nothing that has not been done.

    Raises: EstBadAnswer if the update cannot be read, is not signed by its signer, or that is no CA below an anchor
    that the update leaves.
    """
    try:
        update = decode_trust_update(data)
    except WireError as error:
        raise EstBadAnswer(f"The fleet's trust update is refused: {error}") from error
    signer, *above = update.chain
    if not _is_authority(signer):
        raise EstBadAnswer("The fleet's trust update is refused: its signer is no CA.")
    kept = [each for each in anchors if key_name(each) not in update.retired]
    vouching = [each for each in kept if each == signer or find_chain(signer, above, [each], now)[1]]
    if not vouching:
        raise EstBadAnswer(
            "The fleet's trust update is refused: no trust anchor that it leaves vouches for its signer."
        )
    retired = [each for each in anchors if each not in kept and any(is_predecessor(each, of) for of in vouching)]
    return tuple(each for each in anchors if each not in retired)


def follow_trust(
    config: AgentConfig,
    client: EstClient,
    authorities: Sequence[x509.Certificate],
    chain: Sequence[x509.Certificate],
    now: datetime,
) -> str:
    """Take new roots out of the server's `authorities` into the device's own CA file, and those that are retired out of
    it, if `chain`, of the device's newest certificate, ends at one that is left. Returns why a trust update was
    refused, or "". A CA file elsewhere is not the agent's to change. The caller holds the lock of the slots.

    Raises: BadConfig, OSError.
    """
    if config.ca_file.parent != config.home:
        return ""
    anchors = tuple(load_anchors(config.ca_file))
    trusted, problem = (*anchors, *new_roots(anchors, authorities, now)), ""
    if len(trusted) > 1:
        trusted, problem = _without_retired(client, trusted, chain, now)
    if trusted != anchors:
        write_atomically(config.ca_file, b"".join(each.public_bytes(Encoding.PEM) for each in trusted))
    return problem


def _without_retired(
    client: EstClient, anchors: tuple[x509.Certificate, ...], chain: Sequence[x509.Certificate], now: datetime
) -> tuple[tuple[x509.Certificate, ...], str]:
    left, problem = anchors, ""
    # A device of a tenant with a root of its own verifies the server by another, whose update is another one.
    asked = (client.trust_update, client.server_trust_update)
    for ask in asked if len({each.subject for each in anchors}) > 1 else asked[:1]:
        try:
            update = ask()
            left = apply_trust_update(update, left, now) if update is not None else left
        except EstError as error:
            EventLog().event("trust-update-refused", reason=error.message)
            problem = error.message
    return (left if find_chain(chain[0], chain[1:], left, now)[1] else anchors), problem


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return constraints.ca
