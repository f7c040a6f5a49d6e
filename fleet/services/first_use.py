"""What the first use of a certificate ends beside those that were issued before it.

Stations, claims, approvals, and tokens of a factory's operator enroll a device that is new, never one in the field. One
whose first certificate is not in use yet is new to them: so what they have earned is judged again at its first use.
"""

from collections.abc import Sequence

from fleet.domain.credential import Credential, CredentialKind, CredentialState
from fleet.domain.errors import Refused
from fleet.domain.grants import COVERING_THE_FIELD, TokenGrant
from fleet.domain.ports import Registry


async def ended_by_first_use(
    registry: Registry, used: Credential, credentials: Sequence[Credential]
) -> tuple[Credential, ...]:
    """Those of `credentials`, the holder's, oldest first, that were issued after `used`, now used for the first time,
    and may not supersede it. One for the same key is the same device's.

    Raises: Refused (`certificate-ended`): `used` itself may not supersede another that is in use.
    """
    if used.kind is not CredentialKind.DEVICE:
        return ()
    others = [c for c in credentials if c.kind is used.kind and c.key_sha256 != used.key_sha256]
    if any(c.state is CredentialState.ACTIVE for c in others) and not await _takes_over(registry, used):
        raise Refused("certificate-ended", "Another certificate of the device was in use before this one.")
    fingerprints = [c.fingerprint for c in credentials]
    if used.fingerprint not in fingerprints:
        return ()
    newer = frozenset(fingerprints[fingerprints.index(used.fingerprint) + 1 :])
    unused = [c for c in others if c.fingerprint in newer and c.state is CredentialState.ISSUED]
    return tuple([c for c in unused if not await _takes_over(registry, c)])


async def _takes_over(registry: Registry, credential: Credential) -> bool:
    """Whether the right that `credential` was issued by covers a device in the field."""
    word, _, name = credential.grant.partition(" ")
    if word != TokenGrant.word:
        return word in COVERING_THE_FIELD
    token = await registry.token(name)
    return token is None or (token.takes_over and token.device_id is not None)
