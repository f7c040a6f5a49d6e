"""The certificates that a listener sends after its own: one chain that a client with any one of the roots can verify.

A client that follows the chain in the order sent (OpenSSL, GnuTLS, Mbed TLS) stops at the first certificate that one
of its roots has signed. So the chain climbs: the issuing CA as the oldest root has signed it, then from each former
root to its successor (OldWithNew). A root that is not ours has signed none of ours: then the chain climbs to that root,
and on through NewWithOld to those before it. Go searches all that is sent; it counts self-issued certificates towards
the path length, as GnuTLS and Mbed TLS do.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

from cryptography import x509

from fleet.ca.chain import has_signed
from fleet.home.ca_store import Authority, FormerRoot

MARGIN = timedelta(days=7)
"""A former root leaves the chain this long before it expires: an expired certificate in it would fail other clients."""


def served_chain(authority: Authority, now: datetime) -> tuple[x509.Certificate, ...]:
    """Without the server's own certificate, and without a root."""
    known = [each for each in authority.former_roots if each.certificate.not_valid_after_utc - MARGIN > now]
    if any(each.old_with_new is None for each in known):
        # The present root, or one after a former one, is not ours, and has signed none of ours.
        return (authority.issuing, *authority.above, *_down(authority, known))
    former = [each for each in _linked(authority) if each in known]
    if not former:
        return (authority.issuing, *authority.above)
    oldest, oldest_first = former[-1], former[::-1]
    if oldest.issuing is not None and _within_path_lengths(authority, oldest_first):
        return (oldest.issuing, *(each.old_with_new for each in oldest_first if each.old_with_new))
    # The oldest root's key was away, or a newer root has path length 1: what OpenSSL and Go can verify with any root
    # that has signed the issuing CA, and the others with the current one.
    return (authority.issuing, *authority.above, *_down(authority, former))


def _down(authority: Authority, former: list[FormerRoot]) -> Iterator[x509.Certificate]:
    """From the present root to each before it (NewWithOld); then the issuing CA as those former roots have signed it to
    which that does not lead. GnuTLS would follow such a one to a root that it may not have.
    """
    yield from (each.new_with_old for each in former if each.new_with_old)
    below, is_led_to = 1 + len(authority.above), True
    for each in former:
        link = each.new_with_old
        is_led_to = is_led_to and link is not None and _path_length(link) >= below
        is_led_to, below = is_led_to and _path_length(each.certificate) > below, below + 1
        if each.issuing is not None and not is_led_to:
            yield each.issuing


def _linked(authority: Authority) -> Iterator[FormerRoot]:
    """The former roots, newest first, for as long as each is signed by the one after it."""
    successor = authority.root
    for root in authority.former_roots:
        if root.old_with_new is None or not has_signed(successor, root.old_with_new):
            return
        yield root
        successor = root.certificate


def _within_path_lengths(authority: Authority, oldest_first: list[FormerRoot]) -> bool:
    """Whether each root but the oldest, and each link, allows as many CAs as are below it in the climbing chain."""
    successors = (*(each.certificate for each in oldest_first[1:]), authority.root)
    bounds: Iterator[tuple[x509.Certificate, int]] = (
        (certificate, below)
        for position, (root, successor) in enumerate(zip(oldest_first, successors, strict=True), start=1)
        for certificate, below in ((root.old_with_new, position), (successor, position + 1))
        if certificate is not None
    )
    return all(_path_length(certificate) >= below for certificate, below in bounds)


def _path_length(authority: x509.Certificate) -> float:
    found = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    return float("inf") if found is None else found
