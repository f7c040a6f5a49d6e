/* DER: certs-only CMS (RFC 5652, 5.1), and the subjectAltName in a certificate's extensions. */
#include "parsers.h"

#include <string.h>

enum { INTEGER = 0x02, OCTETS = 0x04, OID = 0x06, SEQUENCE = 0x30, SET = 0x31, CONTEXT_0 = 0xA0, CONTEXT_1 = 0xA1 };

static const uint8_t SIGNED_DATA[] = {0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x07, 0x02};
static const uint8_t SUBJECT_ALT_NAME[] = {0x55, 0x1D, 0x11};

int fleet_der_take(struct fleet_span *in, uint8_t tag, struct fleet_span *whole, struct fleet_span *content)
{
    size_t header = 2, size;

    if (in->size < 2 || in->data[0] != tag)
        return FLEET_BAD_INPUT;
    size = in->data[1];
    if (size >= 0x80) { /* X.690, 10.1: definite, in the fewest octets; more than 65,535 never fits here */
        unsigned octets = (unsigned)size & 0x7F;
        if (octets < 1 || octets > 2 || in->size < 2u + octets)
            return FLEET_BAD_INPUT;
        size = octets == 1 ? in->data[2] : (size_t)in->data[2] << 8 | in->data[3];
        if (size < (octets == 1 ? 0x80u : 0x100u))
            return FLEET_BAD_INPUT;
        header += octets;
    }
    if (size > in->size - header)
        return FLEET_BAD_INPUT;
    if (whole) {
        whole->data = in->data;
        whole->size = header + size;
    }
    if (content) {
        content->data = in->data + header;
        content->size = size;
    }
    in->data += header + size;
    in->size -= header + size;
    return FLEET_OK;
}

static int is_oid(struct fleet_span oid, const uint8_t *wanted, size_t size)
{
    return oid.size == size && !memcmp(oid.data, wanted, size);
}

int fleet_certs_only(const uint8_t *der, size_t size, struct fleet_span *certificates, size_t *count)
{
    struct fleet_span in, info, oid, outer, data, list;

    *count = 0;
    in.data = der;
    in.size = size;
    if (fleet_der_take(&in, SEQUENCE, NULL, &info) || in.size || fleet_der_take(&info, OID, NULL, &oid) ||
        !is_oid(oid, SIGNED_DATA, sizeof SIGNED_DATA) || fleet_der_take(&info, CONTEXT_0, NULL, &outer) || info.size ||
        fleet_der_take(&outer, SEQUENCE, NULL, &data) || outer.size)
        return FLEET_BAD_INPUT;
    /* version, digestAlgorithms, encapContentInfo, [0] certificates, [1] crls, signerInfos */
    if (fleet_der_take(&data, INTEGER, NULL, NULL) || fleet_der_take(&data, SET, NULL, NULL) ||
        fleet_der_take(&data, SEQUENCE, NULL, NULL) || fleet_der_take(&data, CONTEXT_0, NULL, &list))
        return FLEET_BAD_INPUT;
    if (data.size && data.data[0] == CONTEXT_1 && fleet_der_take(&data, CONTEXT_1, NULL, NULL))
        return FLEET_BAD_INPUT;
    if (fleet_der_take(&data, SET, NULL, NULL) || data.size)
        return FLEET_BAD_INPUT;
    while (list.size) {
        if (*count == FLEET_CERTIFICATES_MAX)
            return FLEET_TOO_LARGE;
        if (fleet_der_take(&list, SEQUENCE, &certificates[*count], NULL))
            return FLEET_BAD_INPUT;
        ++*count;
    }
    return *count ? FLEET_OK : FLEET_BAD_INPUT;
}

int fleet_subject_alt_name(struct fleet_span extensions, struct fleet_span *extension)
{
    struct fleet_span list, whole, one, oid;

    memset(extension, 0, sizeof *extension);
    if (!extensions.size)
        return FLEET_OK;
    if (fleet_der_take(&extensions, SEQUENCE, NULL, &list) || extensions.size)
        return FLEET_BAD_INPUT;
    while (list.size) {
        if (fleet_der_take(&list, SEQUENCE, &whole, &one) || fleet_der_take(&one, OID, NULL, &oid))
            return FLEET_BAD_INPUT;
        if (is_oid(oid, SUBJECT_ALT_NAME, sizeof SUBJECT_ALT_NAME))
            *extension = whole;
    }
    return FLEET_OK;
}
