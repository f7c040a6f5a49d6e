"""URL paths of what is published, and shards of serial numbers."""

import pytest

from fleet.config.settings import SHARDS_MAX
from fleet.domain import distribution

CA = distribution.ca_name(bytes.fromhex("00aB" * 10))


def test_paths_are_distinct_and_name_the_ca() -> None:
    paths = {
        distribution.ca_path(CA): f"/ca/{CA}.cer",
        distribution.full_crl_path(CA): f"/crl/{CA}.crl",
        distribution.plain_crl_path(CA): f"/crl/{CA}/plain.crl",
        distribution.delta_crl_path(CA): f"/crl/{CA}/delta.crl",
        distribution.shard_crl_path(CA, 3, 128): f"/crl/{CA}/3-of-128.crl",
    }
    assert CA == "00ab" * 10
    assert len(paths) == 5
    assert all(path == expected for path, expected in paths.items())


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 128, 1000, SHARDS_MAX])
def test_the_buckets_of_all_shards_are_every_bucket_once(shards: int) -> None:
    buckets = [(bucket, shard) for shard in range(shards) for bucket in distribution.buckets_of(shard, shards)]
    assert [bucket for bucket, _ in buckets] == list(range(1 << 16))
    high = 0x7F << 152
    assert all(distribution.shard_of(high + bucket, shards) == shard for bucket, shard in buckets)
    sizes = [len(distribution.buckets_of(shard, shards)) for shard in range(shards)]
    assert max(sizes) - min(sizes) <= 1


def test_a_certificate_names_its_shard_or_the_full_crl() -> None:
    assert distribution.crl_path_of(CA, 0x1234_C000, 4) == f"/crl/{CA}/3-of-4.crl"
    assert distribution.crl_path_of(CA, 0x1234_C000, 1) == f"/crl/{CA}.crl"
