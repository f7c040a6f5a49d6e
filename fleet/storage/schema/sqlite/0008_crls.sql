-- What CRLs and OCSP answers are made of: certificates that relying parties must refuse, whatever becomes of their rows
-- in `credential`. A CRL is made from these rows alone.
CREATE TABLE revoked (
    serial     BLOB PRIMARY KEY CHECK (length(serial) BETWEEN 1 AND 20),
    not_after  INTEGER NOT NULL,
    revoked_at INTEGER NOT NULL,
    reason     INTEGER NOT NULL, -- RFC 5280, 5.3.1; 8: it was on hold, and is valid again
    issuer     BLOB, -- its CA's key identifier, from the certificate
    bucket     INTEGER, -- fleet.domain.distribution
    entry      BLOB, -- its DER in a CRL; NULL: to be made
    number     INTEGER -- of the first CRL that has the entry; NULL: none has yet
) STRICT, WITHOUT ROWID;
CREATE INDEX revoked_by_bucket ON revoked (issuer, bucket);
CREATE INDEX revoked_by_number ON revoked (number, issuer);

CREATE TABLE crl (
    path        TEXT PRIMARY KEY,
    issuer      BLOB NOT NULL,
    number      INTEGER NOT NULL,
    base        INTEGER NOT NULL, -- of a delta CRL; else 0
    this_update INTEGER NOT NULL,
    next_update INTEGER NOT NULL,
    entries     INTEGER NOT NULL,
    der         BLOB NOT NULL
) STRICT;

INSERT INTO revoked (serial, not_after, revoked_at, reason)
    SELECT c.serial, c.not_after, strftime('%s', 'now') * 1000000,
        CASE WHEN c.state <> 'revoked' THEN 6 WHEN d.state = 'retired' THEN 5 ELSE 0 END
    FROM credential c LEFT JOIN device d ON d.id = c.holder AND c.kind = 'device'
    WHERE c.not_after > strftime('%s', 'now') * 1000000 AND (c.state = 'revoked' OR d.state = 'suspended');
