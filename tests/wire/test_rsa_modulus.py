"""RSA moduli that somebody can factor: each made here as the faulty generator made it."""

import math
import secrets
from collections.abc import Callable
from functools import cache

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from fleet.wire.errors import WeakKey
from fleet.wire.keys import key_type_of
from fleet.wire.rsa_modulus import modulus_weakness

SMALL = math.prod(n for n in range(2, 2000) if all(n % p for p in range(2, math.isqrt(n) + 1)))


def is_prime(n: int) -> bool:
    if math.gcd(n, SMALL) != 1:
        return False
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(6):  # Miller and Rabin
        x = pow(secrets.randbelow(n - 3) + 2, odd, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def next_prime(n: int) -> int:
    n |= 1
    while not is_prime(n):
        n += 2
    return n


def roca_prime(bits: int) -> int:
    """As the library of CVE-2017-15361 made them: k * M + 65537^a mod M."""
    product = math.prod(n for n in range(2, 702) if all(n % p for p in range(2, n)))
    while True:
        k = secrets.randbits(bits - product.bit_length()) | 1 << (bits - product.bit_length() - 1)
        prime = k * product + pow(65537, secrets.randbits(250), product)
        if is_prime(prime):
            return prime


@cache
def prime(number: int) -> int:
    """One of 1024 bits, the same for a number; made by a test, not by every process that collects."""
    return next_prime(secrets.randbits(1022) | 3 << 1022)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: prime(1) * prime(1), "too close"),
        (lambda: prime(1) * next_prime(prime(1) + 2), "too close"),
        (lambda: prime(1) * next_prime(prime(1) + (1 << 400)), "too close"),
        (lambda: prime(1) * prime(2) * 251, "small factor"),
        (lambda: prime(1) * prime(2) * 4093, "small factor"),
        (lambda: (1 << 2047) + 2, "small factor"),
        (lambda: roca_prime(1030) * roca_prime(1030), "CVE-2017-15361"),
    ],
    ids=["square", "next prime", "close", "251", "4093", "even", "ROCA"],
)
def test_what_can_be_factored_is_refused(make: Callable[[], int], why: str) -> None:
    modulus = make()
    weakness = modulus_weakness(modulus)
    assert weakness is not None
    assert why in weakness
    if modulus % 2:  # the library itself reads no even modulus
        with pytest.raises(WeakKey, match="can be broken"):
            key_type_of(rsa.RSAPublicNumbers(65537, modulus).public_key())


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_ordinary_keys_are_taken(bits: int) -> None:
    key = rsa.generate_private_key(65537, bits).public_key()
    assert modulus_weakness(key.public_numbers().n) is None
    assert key_type_of(key) == "RSA-2048+"


@pytest.mark.parametrize("exponent", [3, 17, 65535, (1 << 64) + 1])
def test_exponents_out_of_bounds_are_refused(exponent: int) -> None:
    modulus = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n
    with pytest.raises(WeakKey, match="exponent"):
        key_type_of(rsa.RSAPublicNumbers(exponent, modulus).public_key())
