"""RSA moduli that somebody can factor: known mistakes of key generators, each found in devices in the field.

What costs an attacker minutes is found here in well under a millisecond. No test proves a modulus good.
"""

import functools
import math

SMALL_PRIME_MAX = 1 << 12
ROCA_PRIME_MAX = 168  # M of a 512-bit key ends with 167; those of longer keys go on
CLOSE_PRIME_STEPS = 100  # CVE-2022-26320: the primes were so close that the first step found them

# CVE-2017-15361 (ROCA): primes of the form k*M + 65537^a mod M, so a modulus is a power of 65537 modulo every divisor
# of M. For a modulus made otherwise to pass all of these by chance is less likely than 2^-100.
_ROCA_GENERATOR = 65537


def _primes(limit: int) -> list[int]:
    return [n for n in range(2, limit) if all(n % p for p in range(2, math.isqrt(n) + 1))]


@functools.cache  # made by the first RSA key: a device that has none does not wait for it
def _small_primes() -> int:
    return math.prod(_primes(SMALL_PRIME_MAX))


@functools.cache
def _roca_powers() -> tuple[tuple[int, frozenset[int]], ...]:
    """Each odd prime divisor of M, with the powers of the generator modulo it."""
    primes = _primes(ROCA_PRIME_MAX)[1:]
    return tuple((prime, frozenset(pow(_ROCA_GENERATOR, n, prime) for n in range(prime))) for prime in primes)


# A square ends in one of these modulo 64: three of four numbers need no root.
_SQUARES = frozenset(n * n % 64 for n in range(64))


def modulus_weakness(modulus: int) -> str | None:
    """What is wrong with an RSA `modulus`, in words for a sentence; None when nothing known is."""
    if math.gcd(modulus, _small_primes()) != 1:
        return "its modulus has a small factor"
    if all(modulus % prime in powers for prime, powers in _roca_powers()):
        return "it was made by a chip with the flaw of CVE-2017-15361"
    if _has_close_primes(modulus):
        return "its two primes lie too close together"
    return None


def _has_close_primes(modulus: int) -> bool:
    """Fermat: n = a² - b² = (a - b)(a + b); with the primes close together, a lies just above the root of n."""
    a = math.isqrt(modulus)
    if a * a == modulus:
        return True
    a += 1
    rest = a * a - modulus
    for _ in range(CLOSE_PRIME_STEPS):
        if rest % 64 in _SQUARES and math.isqrt(rest) ** 2 == rest:
            return True
        rest += 2 * a + 1
        a += 1
    return False
