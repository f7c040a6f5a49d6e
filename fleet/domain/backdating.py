"""How far back notBefore and thisUpdate are set in what is signed: a verifier's clock may be slow."""

from datetime import timedelta

BACKDATED_LEAF = timedelta(minutes=5)
"""Of notBefore in end-entity certificates, which are used the moment they arrive: clocks of one fleet's gateways differ
by some seconds.
"""
BACKDATED_STATUS = BACKDATED_LEAF
"""Of thisUpdate in CRLs and OCSP answers: some clients (GnuTLS) tolerate no second."""
BACKDATED_CA = timedelta(days=1)
"""Of notBefore in what devices verify, some without a clock: certificates of CAs and of the server. A board that boots
with the time at which it was last switched off must still be able to reach the server.
"""
