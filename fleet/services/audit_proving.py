"""A proof for one row, against the newest signed head."""

from fleet.domain.audit_proof import Proof, check_path
from fleet.domain.errors import Invalid, NotFound, Unavailable
from fleet.domain.ports import AuditReader
from fleet.services.audit_tree import path_of


async def prove(reader: AuditReader, seq: int) -> Proof:
    """That row `seq` is in the audit.

    Raises: NotFound: `no-such-row`, `row-archived`. Unavailable (`not-sealed`): no head covers it yet. Invalid: what is
    kept has been tampered with, and proves nothing.
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
