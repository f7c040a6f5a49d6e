/* Parsers of what comes from the network. None needs a library, keeps state, or reads past what it was given. */
#ifndef FLEET_PARSERS_H
#define FLEET_PARSERS_H

#include "bounds.h"

/* Base64 of `size` bytes with a NUL: its length, or 0 if `out_max` does not hold it. */
size_t fleet_base64_encode(const uint8_t *data, size_t size, char *out, size_t out_max);

/* Decodes in place; CR, LF, space and tab are skipped (RFC 8951). FLEET_OK and the size, or FLEET_BAD_INPUT. */
int fleet_base64_decode(uint8_t *data, size_t size, size_t *decoded);

struct fleet_http_answer {
    unsigned status;
    size_t header_size; /* with the empty line */
    size_t content_size;
    uint32_t retry_seconds; /* Retry-After in seconds, capped; 0 if there is none, or a date */
};

/* The header of an HTTP/1.x answer: FLEET_OK, FLEET_MORE, FLEET_TOO_LARGE or FLEET_BAD_INPUT. Content-Length is
 * required but for 204; transfer codings and interim answers (1xx) are refused. */
int fleet_http_answer(const uint8_t *data, size_t size, struct fleet_http_answer *answer);

/* One DER element with `tag` off the front of `in`: `whole` (or NULL) is all of it, `content` (or NULL) its content. */
int fleet_der_take(struct fleet_span *in, uint8_t tag, struct fleet_span *whole, struct fleet_span *content);

/* The certificates in a certs-only CMS SignedData (RFC 5272, 4.1), up to FLEET_CERTIFICATES_MAX: FLEET_OK,
 * FLEET_TOO_LARGE or FLEET_BAD_INPUT. */
int fleet_certs_only(const uint8_t *der, size_t size, struct fleet_span *certificates, size_t *count);

/* The DER of the subjectAltName extension in a certificate's Extensions; empty if there is none. */
int fleet_subject_alt_name(struct fleet_span extensions, struct fleet_span *extension);

#endif
