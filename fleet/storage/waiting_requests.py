"""Texts of SQL about requests that wait for approval: which count against limits, and which gives way."""

NOT_LISTED = """NOT EXISTS (
        SELECT 1 FROM manifest
        WHERE manifest.key_sha256 = approval_request.key_sha256 AND manifest.device_id = approval_request.device_id)"""
CROWD = f"approval_request WHERE state = 'pending' AND {NOT_LISTED}"


def make_room(pool: str) -> str:
    """Of the requests in `pool`, when they are as many as $4: see `AddRequest`."""
    return f"""
    DELETE FROM approval_request WHERE id = (
        SELECT id FROM (
            SELECT id, block, last_seen, count(*) OVER () AS of_pool,
                count(*) OVER (PARTITION BY block) AS of_block,
                count(*) OVER (PARTITION BY network) AS of_network,
                count(*) FILTER (WHERE block = $2::text) OVER () AS own_block,
                count(*) FILTER (WHERE network = $3::text) OVER () AS own_network
            FROM {CROWD}{pool}) AS held
        WHERE of_pool >= $4::bigint AND (
            of_block > own_block + 1 OR (of_block > own_block AND last_seen <= $5::bigint)
            OR (block = $2::text AND (
                of_network > own_network + 1 OR (of_network > own_network AND last_seen <= $5::bigint))))
        ORDER BY of_block DESC, of_network DESC, last_seen, id LIMIT 1)
    AND NOT EXISTS (SELECT 1 FROM approval_request WHERE id = $1::text)"""
