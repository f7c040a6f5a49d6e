/* What is asked of the cryptographic library: keys, CSRs, certificates, and one TLS session at a time. */
#ifndef FLEET_CRYPTO_H
#define FLEET_CRYPTO_H

#include "bounds.h"
#include "slots.h"

/* Once, before anything else. FLEET_OK or FLEET_CRYPTO. */
int fleet_crypto_start(void);

int fleet_sha256(const uint8_t *data, size_t size, uint8_t hash[32]);
void fleet_wipe(void *data, size_t size); /* to zero, even where the compiler sees no use of it */

/* A new EC P-256 key into `identity`. */
int fleet_key_new(struct fleet_identity *identity);

/* A CSR (PKCS#10, DER) by the key in `identity`: for `device_id`, or for the subject and the subjectAltName of the
 * certificate in `renewed` (RFC 7030, 4.2.2), if there is one. */
int fleet_csr(const struct fleet_identity *identity, const char *device_id, const struct fleet_identity *renewed,
              uint8_t *out, size_t out_max, size_t *size);

/* Whether the issued certificate is for our key and `device_id`, for client authentication, and verifies: `cas` below
 * `anchors`. FLEET_OK: chain and its size are in `identity`. FLEET_UNTRUSTED, FLEET_TOO_LARGE, FLEET_BAD_INPUT. */
int fleet_certificate_accept(struct fleet_identity *identity, const char *device_id, struct fleet_span issued,
                             const struct fleet_span *cas, size_t ca_count, struct fleet_span anchors);

/* notBefore and notAfter of the first certificate in `chain`, UTC seconds. */
int fleet_certificate_dates(struct fleet_span chain, uint64_t *not_before, uint64_t *not_after);

/* A TLS connection to host:port, whose certificate must verify by `anchors` and name `host` as a DNS subjectAltName.
 * `identity` (or NULL) is shown. FLEET_OK, FLEET_NETWORK, FLEET_UNTRUSTED, FLEET_REFUSED, FLEET_CRYPTO. */
int fleet_tls_open(const char *host, uint16_t port, struct fleet_span anchors, const struct fleet_identity *identity,
                   uint32_t wait_ms);

/* Up to `size` bytes: FLEET_OK and their number, FLEET_MORE if none came in time, FLEET_NETWORK, FLEET_REFUSED. */
int fleet_tls_read(uint8_t *data, size_t size, uint32_t wait_ms, size_t *got);

/* All of it, or an error. */
int fleet_tls_write(const uint8_t *data, size_t size, uint32_t wait_ms);
void fleet_tls_close(void);

#endif
