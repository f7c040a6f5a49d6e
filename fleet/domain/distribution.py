"""URL paths, beneath `[publish] url`, of what relying parties fetch, and the CRL shard of a serial number.

A CA is named by its subject key identifier in lower-case hex, as its certificate has it: a new key is a new name,
and certificates that link roots share their root's.
"""

_BUCKETS = 1 << 16

FULL, PLAIN = "full", "plain"
CA_NAME_PATTERN = r"^([0-9a-f]{2}){1,64}\Z"
CRL_KIND_PATTERN = r"^(full|plain|delta|[0-9]{1,4}-of-[0-9]{1,4})\Z"

OCSP_PATH = "/ocsp"
"""Of the OCSP responder, for every CA."""


def ca_name(key_identifier: bytes) -> str:
    """The name, in paths, of the CA with this subject key identifier."""
    return key_identifier.hex()


def ca_path(ca: str) -> str:
    """Of the CA's certificate, DER (application/pkix-cert; RFC 5280, 4.2.2.1)."""
    return f"/ca/{ca}.cer"


def full_crl_path(ca: str) -> str:
    """Of the CA's full CRL, with an issuing distribution point that names this URL."""
    return f"/crl/{ca}.crl"


def plain_crl_path(ca: str) -> str:
    """Of the CA's full CRL without an issuing distribution point, which some clients refuse as it is critical."""
    return f"/crl/{ca}/plain.crl"


def delta_crl_path(ca: str) -> str:
    """Of the CA's delta CRL (RFC 5280, 5.2.4)."""
    return f"/crl/{ca}/delta.crl"


def shard_crl_path(ca: str, shard: int, shards: int) -> str:
    """Of the CRL of one shard of `shards`. Its issuing distribution point, critical, names this URL."""
    return f"/crl/{ca}/{shard}-of-{shards}.crl"


def crl_path_of(ca: str, serial: int, shards: int) -> str:
    """The path for the CRL distribution point of the certificate `serial`: its shard, or the full CRL of one shard."""
    return full_crl_path(ca) if shards == 1 else shard_crl_path(ca, shard_of(serial, shards), shards)


def bucket_of(serial: int) -> int:
    """The last two octets of a serial number: 0 to 65535, spread evenly over random ones."""
    return serial % _BUCKETS


def shard_of(serial: int, shards: int) -> int:
    """The shard of `serial` among `shards`, from 0."""
    return bucket_of(serial) * shards // _BUCKETS


def buckets_of(shard: int, shards: int) -> range:
    """The buckets of `shard`, which are consecutive."""
    return range(-(-shard * _BUCKETS // shards), -(-(shard + 1) * _BUCKETS // shards))


def crl_path(ca: str, kind: str) -> str:
    """Of the CA's CRL of this kind: full, plain, delta, or a shard such as 3-of-128."""
    return full_crl_path(ca) if kind == FULL else f"/crl/{ca}/{kind}.crl"


def kind_of_crl(path: str) -> str:
    """The kind of the CRL at `path`, as in `crl_path`."""
    kind = path.removesuffix(".crl").split("/")[3:]
    return kind[0] if kind else FULL


def shards_of_path(path: str) -> int:
    """Of how many shards the CRL at `path` is one; 0: it is not a shard."""
    _, found, count = path.removesuffix(".crl").rpartition("-of-")
    return int(count) if found else 0


def serial_in(shard: int, shards: int) -> int:
    """A serial number in `shard`; it may be that of no certificate."""
    return buckets_of(shard, shards)[0]
