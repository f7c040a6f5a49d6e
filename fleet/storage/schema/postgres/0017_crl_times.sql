-- Of a full CRL, the microseconds that reading its entries and signing it took.
ALTER TABLE crl ADD COLUMN made_in bigint;
