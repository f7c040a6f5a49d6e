-- What is asked of each CRL at each look, without its octets: behind 38 MB of them, the columns added later took 13 ms.
CREATE INDEX crl_head
    ON crl (path, issuer, number, base, this_update, next_update, entries, named_until, made_in);
