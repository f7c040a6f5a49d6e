"""Statements by which a change of a holder's rights enters the rows that CRLs are made of."""

from fleet.storage.statement import Statement

_UNTIL_THEN = "not_after > coalesce($1::bigint, 0)"
_LIST = """
    INSERT INTO revoked (serial, not_after, revoked_at, reason)
    SELECT serial, not_after, coalesce($1::bigint, not_before), $2::bigint FROM credential WHERE """
# What was on hold stays revoked from then on; what is revoked permanently keeps its reason, or gets keyCompromise.
_LISTED = """
    ON CONFLICT (serial) DO UPDATE SET reason = excluded.reason, entry = NULL, number = NULL,
        revoked_at = CASE WHEN revoked.reason = 8 THEN excluded.revoked_at ELSE revoked.revoked_at END
    WHERE (revoked.reason IN (6, 8) OR excluded.reason = 1) AND revoked.reason <> excluded.reason"""
LIST_HOLDERS = Statement(f"{_LIST} holder = $3::text AND kind = $4::text AND {_UNTIL_THEN}{_LISTED}")
LIST_ONE = Statement(f"{_LIST} fingerprint = $3::bytea AND state IN ('issued', 'active') AND {_UNTIL_THEN}{_LISTED}")
LIST_ANY = Statement(f"{_LIST} fingerprint = $3::bytea AND {_UNTIL_THEN}{_LISTED}")
RELEASE_HOLDERS = Statement("""
    UPDATE revoked SET reason = 8, entry = NULL, number = NULL
    WHERE reason = 6 AND serial IN (SELECT serial FROM credential WHERE holder = $1::text AND kind = $2::text)""")

STATEMENTS = {name: each for name, each in list(globals().items()) if isinstance(each, Statement)}
"""Every one by its name."""
