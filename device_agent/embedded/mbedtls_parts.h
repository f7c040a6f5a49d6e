/* Shared by the two files that know Mbed TLS 2.28. */
#ifndef FLEET_MBEDTLS_PARTS_H
#define FLEET_MBEDTLS_PARTS_H

#include <mbedtls/ctr_drbg.h>
#include <mbedtls/pk.h>
#include <mbedtls/x509_crt.h>

#include "crypto.h"

extern mbedtls_ctr_drbg_context fleet_drbg;

/* Anchors in DER (one) or PEM (several; the size counts its final NUL). */
int fleet_load_anchors(mbedtls_x509_crt *crt, struct fleet_span anchors);

/* The certificates in `chain`, one behind the other. */
int fleet_load_chain(mbedtls_x509_crt *crt, struct fleet_span chain);

int fleet_load_key(mbedtls_pk_context *pk, const struct fleet_identity *identity);

/* For mbedtls_x509_crt_verify: dates by the port's clock, if that is set; `context` is not used. */
int fleet_check_dates(void *context, mbedtls_x509_crt *crt, int depth, uint32_t *flags);

#endif
