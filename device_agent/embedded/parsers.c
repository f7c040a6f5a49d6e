/* Base64 and HTTP. RFC 4648, RFC 9112, RFC 8951. */
#include "parsers.h"

#include <string.h>

static const char ALPHABET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

size_t fleet_base64_encode(const uint8_t *data, size_t size, char *out, size_t out_max)
{
    size_t length = (size + 2) / 3 * 4, n, at = 0;

    if (size > out_max || length >= out_max)
        return 0;
    for (n = 0; n < size; n += 3) {
        uint32_t bits = (uint32_t)data[n] << 16;
        if (n + 1 < size)
            bits |= (uint32_t)data[n + 1] << 8;
        if (n + 2 < size)
            bits |= data[n + 2];
        out[at++] = ALPHABET[bits >> 18];
        out[at++] = ALPHABET[bits >> 12 & 63];
        out[at++] = n + 1 < size ? ALPHABET[bits >> 6 & 63] : '=';
        out[at++] = n + 2 < size ? ALPHABET[bits & 63] : '=';
    }
    out[at] = '\0';
    return at;
}

static int value_of(uint8_t letter)
{
    const char *found = letter ? strchr(ALPHABET, letter) : NULL;

    return found ? (int)(found - ALPHABET) : -1;
}

int fleet_base64_decode(uint8_t *data, size_t size, size_t *decoded)
{
    size_t n, out = 0;
    unsigned held = 0, padding = 0;
    uint32_t bits = 0;

    for (n = 0; n < size; n++) {
        uint8_t letter = data[n];
        int value = 0;

        if (letter == '\r' || letter == '\n' || letter == ' ' || letter == '\t')
            continue;
        if (letter == '=')
            padding++;
        else if (padding || (value = value_of(letter)) < 0)
            return FLEET_BAD_INPUT;
        bits = bits << 6 | (uint32_t)value;
        if (++held < 4)
            continue;
        if (padding > 2 || (padding == 2 && (bits & 0xFFFF)) || (padding == 1 && (bits & 0xFF)))
            return FLEET_BAD_INPUT;
        data[out++] = (uint8_t)(bits >> 16);
        if (padding < 2)
            data[out++] = (uint8_t)(bits >> 8);
        if (padding < 1)
            data[out++] = (uint8_t)bits;
        held = 0;
        bits = 0;
        if (padding)
            padding = 3; /* only white space may follow */
    }
    if (held)
        return FLEET_BAD_INPUT;
    *decoded = out;
    return FLEET_OK;
}

/* The line at the front of `in`, without its CR LF. */
static int take_line(struct fleet_span *in, struct fleet_span *line)
{
    const uint8_t *end = in->size ? memchr(in->data, '\n', in->size) : NULL;
    size_t length;

    if (!end)
        return FLEET_MORE;
    length = (size_t)(end - in->data);
    if (length == 0 || in->data[length - 1] != '\r' || memchr(in->data, '\0', length))
        return FLEET_BAD_INPUT;
    line->data = in->data;
    line->size = length - 1;
    in->data += length + 1;
    in->size -= length + 1;
    return FLEET_OK;
}

static uint8_t lower(uint8_t letter)
{
    return letter >= 'A' && letter <= 'Z' ? (uint8_t)(letter + 32) : letter;
}

/* Whether `line` is the field `name` (in lower case); `value` is then its value, without the white space around it. */
static int is_field(struct fleet_span line, const char *name, struct fleet_span *value)
{
    size_t length = strlen(name), n;

    if (line.size <= length || line.data[length] != ':')
        return 0;
    for (n = 0; n < length; n++)
        if (lower(line.data[n]) != (uint8_t)name[n])
            return 0;
    value->data = line.data + length + 1;
    value->size = line.size - length - 1;
    while (value->size && (value->data[0] == ' ' || value->data[0] == '\t')) {
        value->data++;
        value->size--;
    }
    while (value->size && (value->data[value->size - 1] == ' ' || value->data[value->size - 1] == '\t'))
        value->size--;
    return 1;
}

/* A decimal number, at most `most`: 0 if it is none. */
static int number_of(struct fleet_span text, uint32_t most, uint32_t *number)
{
    size_t n;

    *number = 0;
    for (n = 0; n < text.size; n++) {
        if (text.data[n] < '0' || text.data[n] > '9')
            return 0;
        if (*number <= most)
            *number = *number * 10 + (uint32_t)(text.data[n] - '0');
    }
    if (*number > most)
        *number = most;
    return text.size > 0;
}

static int status_of(struct fleet_span line, unsigned *status)
{
    struct fleet_span digits;
    uint32_t number;

    /* RFC 9112, 4: HTTP-version SP status-code SP [ reason-phrase ] */
    if (line.size < 12 || memcmp(line.data, "HTTP/1.", 7) || line.data[7] < '0' || line.data[7] > '9' ||
        line.data[8] != ' ' || (line.size > 12 && line.data[12] != ' '))
        return FLEET_BAD_INPUT;
    digits.data = line.data + 9;
    digits.size = 3;
    if (!number_of(digits, 999, &number) || number < 200 || number > 599)
        return FLEET_BAD_INPUT;
    *status = (unsigned)number;
    return FLEET_OK;
}

int fleet_http_answer(const uint8_t *data, size_t size, struct fleet_http_answer *answer)
{
    struct fleet_span left, line, value;
    uint32_t number;
    int result, has_size = 0;

    memset(answer, 0, sizeof *answer);
    left.data = data;
    left.size = size;
    if ((result = take_line(&left, &line)) || (result = status_of(line, &answer->status)))
        return result;
    for (;;) {
        if ((result = take_line(&left, &line)))
            return result;
        if (!line.size)
            break;
        if (is_field(line, "transfer-encoding", &value))
            return FLEET_BAD_INPUT;
        if (is_field(line, "content-length", &value)) {
            if (has_size || !number_of(value, FLEET_ANSWER_MAX + 1, &number))
                return FLEET_BAD_INPUT;
            has_size = 1;
            answer->content_size = number;
        } else if (is_field(line, "retry-after", &value) && number_of(value, FLEET_RETRY_SECONDS_MAX, &number)) {
            answer->retry_seconds = number;
        }
    }
    answer->header_size = size - left.size;
    if (answer->status == 204)
        answer->content_size = 0;
    else if (!has_size)
        return FLEET_BAD_INPUT;
    return answer->content_size > FLEET_ANSWER_MAX ? FLEET_TOO_LARGE : FLEET_OK;
}
