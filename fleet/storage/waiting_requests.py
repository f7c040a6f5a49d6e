"""Texts of SQL about requests that wait for approval: which count against limits, and which gives way."""

NOT_LISTED = """NOT EXISTS (
        SELECT 1 FROM manifest
        WHERE manifest.key_sha256 = approval_request.key_sha256 AND manifest.device_id = approval_request.device_id)"""
CROWD = f"approval_request WHERE state = 'pending' AND {NOT_LISTED}"


def _gives_way(level: str, among: str = "") -> str:
    """Whether a request gives way at this `level` of addresses; of the newcomer's own, `among` decides."""
    is_of_more = f"of_{level} > own_{level} + 1 OR (of_{level} > own_{level} AND last_seen <= $6::bigint)"
    return f"({is_of_more} OR ({level} = {_OWN[level]} AND {among}))" if among else f"({is_of_more})"


_OWN = {"region": "$2::text", "block": "$3::text", "network": "$4::text"}
_COUNTS = ", ".join(
    f"count(*) OVER (PARTITION BY {level}) AS of_{level}, "
    f"count(*) FILTER (WHERE {level} = {own}) OVER () AS own_{level}"
    for level, own in _OWN.items()
)


def make_room(pool: str) -> str:
    """Of the requests in `pool`, when they are as many as $5: see `AddRequest`."""
    return f"""
    DELETE FROM approval_request WHERE id = (
        SELECT id FROM (
            SELECT id, region, block, network, last_seen, count(*) OVER () AS of_pool, {_COUNTS}
            FROM (
                SELECT id, CASE region WHEN '' THEN block ELSE region END AS region, block, network, last_seen
                FROM {CROWD}{pool}) AS crowd) AS held
        WHERE of_pool >= $5::bigint AND {_gives_way("region", _gives_way("block", _gives_way("network")))}
        ORDER BY of_region DESC, of_block DESC, of_network DESC, last_seen, id LIMIT 1)
    AND NOT EXISTS (SELECT 1 FROM approval_request WHERE id = $1::text)"""
