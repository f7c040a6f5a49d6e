"""Codes of the audit log: proofs, sealing and verification."""

from fleet.domain.error_codes.code import codes

AUDIT = codes(
    ("archive-damaged", 400, "An archive file is damaged.", "Restore it from a copy."),
    ("archived-meanwhile", 503, "Rows were archived during the verification.", "Run it again."),
    ("audit-archived", 400, "The rows to verify have been archived.", "Verify the archive: fleet retention check."),
    (
        "audit-changed",
        400,
        "A row was changed after it was written.",
        "Investigate; restore the registry from a backup.",
    ),
    (
        "audit-frontier",
        400,
        "The stored tree frontier was tampered with.",
        "Investigate; restore the registry from a backup.",
    ),
    ("audit-hash-missing", 400, "A stored hash or row is missing.", "Investigate; restore the registry from a backup."),
    ("audit-hashes-missing", 503, "The registry lacks hashes needed for an archive.", "Run fleet audit verify."),
    ("audit-head-changed", 400, "A signed tree head was changed.", "Investigate; restore the registry from a backup."),
    ("audit-head-removed", 400, "A signed tree head was removed.", "Investigate; restore the registry from a backup."),
    ("audit-inserted", 400, "A row was inserted later.", "Investigate; restore the registry from a backup."),
    ("audit-kept", 409, "The rows are not all sealed, or not whole blocks, and are kept.", "Seal the audit first."),
    ("audit-key-lost", 403, "The key that signs tree heads is missing.", "Restore ca/audit.key from a backup."),
    ("audit-moved", 400, "A row is out of place.", "Investigate; restore the registry from a backup."),
    ("audit-node", 400, "A stored inner node was tampered with.", "Investigate; restore the registry from a backup."),
    ("audit-removed", 400, "Rows were removed.", "Investigate; restore the registry from a backup."),
    (
        "audit-rewritten",
        400,
        "Rows do not match a signed or recorded tree head.",
        "Investigate; restore the registry from a backup.",
    ),
    ("bad-proof", 400, "The file is not an inclusion proof.", "Create one: fleet audit prove."),
    ("bad-state", 400, "The state file was not written by fleet audit verify.", "Name another file."),
    ("head-key", 400, "A tree head is signed by an unknown key.", "Check the public key given."),
    (
        "head-signature",
        400,
        "The signature of a tree head does not verify.",
        "Investigate; check the public key given.",
    ),
    (
        "no-such-certificate",
        404,
        "The certificate is not in the registry, or is not usable.",
        "Check the serial number.",
    ),
    ("no-such-row", 404, "The audit row does not exist.", "See fleet audit list."),
    ("not-sealed", 503, "The row is not sealed yet.", "Retry in a second, or run fleet audit seal."),
    ("proof-wrong", 400, "The inclusion proof does not verify.", "Do not trust the row."),
    ("row-archived", 404, "The row has been archived.", "Look in the archive."),
    ("sealed-already", 409, "Another process has sealed these rows.", "Nothing to do."),
)
