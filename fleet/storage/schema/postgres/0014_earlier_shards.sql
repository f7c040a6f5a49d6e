-- Of a shard of an earlier number of shards: when the last certificate that may name it has ended.
ALTER TABLE crl ADD COLUMN named_until bigint;
