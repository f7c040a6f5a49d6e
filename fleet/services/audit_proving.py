"""Inclusion proofs of audit rows against the newest signed head."""

from fleet.domain.audit_proof import Proof, check_path
from fleet.domain.errors import Invalid, NotFound, Unavailable
from fleet.domain.ports import AuditReader, Registry
from fleet.services.audit_search import row_of_issue
from fleet.services.audit_tree import path_of


async def seq_of_issue(registry: Registry, serial: str) -> int:
    """The row that recorded the issue of the certificate `serial`, lower-case hex.

    Raises: NotFound: `no-such-certificate`, `no-such-row`.
    """
    credential = await registry.credential(serial)
    if credential is None:
        advice = "If it was issued and archived since, find its row with: fleet audit list --subject 'device ID'"
        raise NotFound("no-such-certificate", f"There is no certificate {serial[:60]} in the registry.", advice)
    row = await row_of_issue(registry, credential)
    if row is None:
        subject = f"{credential.kind} {credential.holder}"
        message = f"No row that is kept records the issue of certificate {serial} to {subject}."
        raise NotFound("no-such-row", message, f"Look through: fleet audit list --subject '{subject}'")
    return row.seq


async def prove(reader: AuditReader, seq: int) -> Proof:
    """The inclusion proof of row `seq`.

    Raises: NotFound: `no-such-row`, `row-archived`. Unavailable (`not-sealed`): no head covers it yet. Invalid: the
    stored rows or hashes have been tampered with.
    """
    page = await reader.audit(after=seq - 1, limit=1)
    if not page or page[0].seq != seq:
        newest = await reader.last_audit()
        if seq > newest:
            raise NotFound("no-such-row", f"The audit ends with row {newest}.", "See: fleet audit list")
        raise NotFound("row-archived", f"Row {seq} is not kept any more.", "Look for it in the archive.")
    sealed = await reader.last_sealed()
    if sealed is None or sealed.head.size < seq:
        advice = "While the server runs it will be within a second; or seal it now with: fleet audit seal"
        raise Unavailable("not-sealed", f"Row {seq} is not sealed yet.", advice)
    proof = Proof(seq, page[0].entry, await path_of(reader, seq - 1, sealed.head.size), sealed.head)
    try:
        check_path(proof)
    except Invalid:
        message = f"The audit is broken: row {seq} and the hashes beside it do not lead to the signed root."
        raise Invalid("audit-changed", message, "See: fleet audit verify") from None
    return proof
