-- What CRLs and OCSP answers are made of: certificates that relying parties must refuse, whatever becomes of their rows
-- in `credential`. A CRL is made from these rows alone.
CREATE TABLE revoked (
    serial     bytea PRIMARY KEY CHECK (length(serial) BETWEEN 1 AND 20),
    not_after  bigint NOT NULL,
    revoked_at bigint NOT NULL,
    reason     bigint NOT NULL, -- RFC 5280, 5.3.1; 8: it was on hold, and is valid again
    issuer     bytea, -- its CA's key identifier, from the certificate
    bucket     bigint, -- fleet.domain.distribution
    entry      bytea, -- its DER in a CRL; NULL: to be made
    number     bigint -- of the first CRL that has the entry; NULL: none has yet
);
CREATE INDEX revoked_by_bucket ON revoked (issuer, bucket);
CREATE INDEX revoked_by_number ON revoked (number, issuer);

CREATE TABLE crl (
    path        text COLLATE "C" PRIMARY KEY,
    issuer      bytea NOT NULL,
    number      bigint NOT NULL,
    base        bigint NOT NULL, -- of a delta CRL; else 0
    this_update bigint NOT NULL,
    next_update bigint NOT NULL,
    entries     bigint NOT NULL,
    der         bytea NOT NULL
);
ALTER TABLE crl ALTER COLUMN der SET STORAGE EXTERNAL; -- random octets are not compressed

INSERT INTO revoked (serial, not_after, revoked_at, reason)
    SELECT c.serial, c.not_after, extract(epoch FROM date_trunc('second', now()))::bigint * 1000000,
        CASE WHEN c.state <> 'revoked' THEN 6 WHEN d.state = 'retired' THEN 5 ELSE 0 END
    FROM credential c LEFT JOIN device d ON d.id = c.holder AND c.kind = 'device'
    WHERE c.not_after > extract(epoch FROM now())::bigint * 1000000 AND (c.state = 'revoked' OR d.state = 'suspended');
