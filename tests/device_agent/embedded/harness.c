/* What the device's code makes of bytes, without a network.
 *
 * harness base64|http|certs|extensions|mqtt   reads standard input, and gives the parser each prefix of it, in memory of
 *     exactly that size; prints one digit a prefix, the status. Then each byte, changed in each bit, of inputs
 *     up to FLIPPED_MAX: no more than no crash is asked of that.
 * harness fuzz PARSER ROUNDS   the parser of that name on changes of standard input: spans of bits, bytes, lengths and
 *     copies, up to eight in each input. What a parser gives must lie within its input.
 * harness slots [again]   power cuts in every write and erasure of three certificates' lives; `again`: each followed by
 *     another one while it recovers. Prints the number of states.
 * harness faults [cut]   in such a life, flash that fails once, at every read, write and erasure; `cut`: each after every
 *     power cut. Prints the number of states.
 */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crypto.h"
#include "mqtt_packets.h"
#include "parsers.h"
#include "port.h"
#include "slots.h"

#define INPUT_MAX 65536u
#define FLIPPED_MAX 2048u
#define MUST(condition) ((condition) ? (void)0 : fail(#condition, __LINE__))

static void fail(const char *what, int line)
{
    printf("line %d: %s\n", line, what);
    exit(1);
}

static int is_within(struct fleet_span part, struct fleet_span whole)
{
    return part.data >= whole.data && part.size <= whole.size &&
           (size_t)(part.data - whole.data) <= whole.size - part.size;
}

static int parse(const char *kind, uint8_t *data, size_t size)
{
    struct fleet_span certificates[FLEET_CERTIFICATES_MAX], given;
    struct fleet_http_answer answer;
    struct fleet_packet packet;
    size_t count, n;
    int result;

    given.data = data;
    given.size = size;
    if (!strcmp(kind, "base64"))
        return fleet_base64_decode(data, size, &count);
    if (!strcmp(kind, "http"))
        return fleet_http_answer(data, size, &answer);
    if (!strcmp(kind, "certs")) {
        result = fleet_certs_only(data, size, certificates, &count);
        for (n = 0; !result && n < count; n++)
            MUST(is_within(certificates[n], given));
        return result;
    }
    if (!strcmp(kind, "extensions")) {
        result = fleet_subject_alt_name(given, certificates);
        MUST(result || !certificates->size || is_within(*certificates, given));
        return result;
    }
    MUST(!strcmp(kind, "mqtt"));
    result = fleet_packet_parse(data, size, &packet, &count);
    if (!result && packet.type == FLEET_PUBLISH)
        MUST(count <= size && is_within(packet.topic, given) && is_within(packet.payload, given));
    return result;
}

static int parse_copy(const char *kind, const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);
    int result;

    MUST(copy);
    if (size)
        memcpy(copy, data, size);
    result = parse(kind, copy, size);
    free(copy);
    return result;
}

static int parsers(const char *kind)
{
    static uint8_t data[INPUT_MAX];
    size_t size = fread(data, 1, sizeof data, stdin), n;
    int bit;

    for (n = 0; n <= size; n++)
        putchar('0' + parse_copy(kind, data, n));
    putchar('\n');
    for (n = 0; n < size && size <= FLIPPED_MAX; n++)
        for (bit = 0; bit < 8; bit++) {
            data[n] ^= (uint8_t)(1 << bit);
            parse_copy(kind, data, size);
            data[n] ^= (uint8_t)(1 << bit);
        }
    return 0;
}

/* xorshift32: the same inputs in every run. */
static size_t below(size_t limit)
{
    static uint32_t state = 2463534242u;

    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state % limit;
}

/* One change of `size` bytes, of which there is room for INPUT_MAX: the new size. */
static size_t mutate(uint8_t *data, size_t size)
{
    static const uint8_t bytes[] = {0x00, 0x01, 0x7F, 0x80, 0x81, 0x82, 0x84, 0xFE, 0xFF, '\r', '\n', ':', '=', '+'};
    size_t at = size ? below(size) : 0, from = size ? below(size) : 0, length = below(size - at + 1);

    if (length > size - from)
        length = size - from;
    switch (size ? below(6) : 3) {
    case 0:
        data[at] ^= (uint8_t)(1 << below(8));
        return size;
    case 1:
        data[at] = bytes[below(sizeof bytes)];
        return size;
    case 2: /* a span is left out */
        memmove(data + at, data + at + length, size - at - length);
        return size - length;
    case 3: /* a byte more */
        if (size == INPUT_MAX)
            return size;
        memmove(data + at + 1, data + at, size - at);
        data[at] = (uint8_t)below(256);
        return size + 1;
    case 4: /* a span again, in another place */
        memmove(data + at, data + from, length);
        return size;
    default:
        return at;
    }
}

static int fuzz(const char *kind, unsigned long rounds)
{
    static uint8_t seed[INPUT_MAX], data[INPUT_MAX];
    size_t size = fread(seed, 1, sizeof seed, stdin), changed, n;
    unsigned long round, taken = 0;

    for (round = 0; round < rounds; round++) {
        memcpy(data, seed, size);
        changed = size;
        for (n = below(8) + 1; n; n--)
            changed = mutate(data, changed);
        taken += !parse_copy(kind, data, changed);
    }
    printf("%lu of %lu are well-formed\n", taken, rounds);
    return 0;
}

/* Flash in memory, whose power is cut in the change number `cut_at`: `part` units of it are done, and the next ones
 * hold garbage if `is_torn`. */
static uint8_t flash[FLEET_FLASH_SIZE];
static unsigned long changes, cut_at, part, units;
static int is_torn, is_from_end;
static jmp_buf power;
/* Each call of the port, and the one that fails: a write or an erasure after `part` units of it. */
static unsigned long calls, fault_at;

static int change(uint32_t offset, const uint8_t *data, size_t size, size_t unit)
{
    size_t n, count = size / unit, done = count;
    int is_fault = ++calls == fault_at;

    if (++changes == cut_at || is_fault) {
        units = count;
        done = part < count ? part : count;
    }
    for (n = 0; n < done; n++) {
        size_t at = (is_from_end && (changes == cut_at || is_fault) ? count - 1 - n : n) * unit;
        memcpy(flash + offset + at, data + at, unit);
    }
    if (changes != cut_at && !is_fault)
        return 0;
    if (is_torn && !is_from_end && done < count)
        memset(flash + offset + done * unit, 0xA5, unit);
    if (is_fault)
        return -1;
    longjmp(power, 1);
}

int fleet_port_flash_read(uint32_t offset, uint8_t *data, size_t size)
{
    MUST(offset + size <= FLEET_FLASH_SIZE);
    if (++calls == fault_at) {
        memset(data, 0x5A, size);
        return -1;
    }
    memcpy(data, flash + offset, size);
    return 0;
}

int fleet_port_flash_write(uint32_t offset, const uint8_t *data, size_t size)
{
    size_t n;

    MUST(offset % FLEET_FLASH_UNIT == 0 && size % FLEET_FLASH_UNIT == 0 && offset + size <= FLEET_FLASH_SIZE);
    for (n = 0; n < size; n++)
        MUST(flash[offset + n] == 0xFF);
    return change(offset, data, size, FLEET_FLASH_UNIT);
}

int fleet_port_flash_erase(uint32_t sector)
{
    static uint8_t blank[FLEET_SECTOR_SIZE];

    memset(blank, 0xFF, sizeof blank);
    return change(sector * FLEET_SECTOR_SIZE, blank, sizeof blank, FLEET_SECTOR_SIZE / 16);
}

int fleet_port_random(uint8_t *data, size_t size)
{
    memset(data, 7, size);
    return 0;
}

uint64_t fleet_port_time(void)
{
    return 0;
}

/* The life of three certificates, which goes on after a cut. The "server" has certified `known[n]`, once a generation,
 * as a key that has been asked for twice is certified once. */
static struct fleet_identity identity;
static uint8_t known[4], next_key;
static unsigned long proven, certified;

static void make_chain(void)
{
    identity.chain_size = 700 + identity.generation;
    memset(identity.chain, identity.key[0], identity.chain_size);
}

/* Whether it failed, which only the one fault of flash excuses. */
static int failed(int result)
{
    MUST(!result || (result == FLEET_FLASH && fault_at && calls >= fault_at));
    return result;
}

static void obtain(int slot, uint32_t generation)
{
    int result = fleet_slots_read_key(slot, &identity);

    if (result == FLEET_NOT_ENROLLED) {
        identity.key_size = 121;
        memset(identity.key, ++next_key, identity.key_size);
        result = fleet_slots_keep_key(slot, &identity);
    }
    if (failed(result))
        return;
    if (known[generation] != identity.key[0]) {
        known[generation] = identity.key[0];
        certified++;
    }
    identity.generation = generation;
    make_chain();
    failed(fleet_slots_keep_chain(slot, &identity));
}

/* What is in `slot` is a whole pair; the newest is what a connection has proven, or its successor. */
static void check(int slot, int is_newest)
{
    if (failed(fleet_slots_read(slot, &identity)))
        return;
    MUST(identity.generation <= proven + 1 && (!is_newest || identity.generation >= proven));
    MUST(identity.key[0] == known[identity.generation] && identity.key[120] == identity.key[0]);
    MUST(identity.chain_size == 700 + identity.generation && identity.chain[700] == identity.key[0]);
}

static void live(void)
{
    int current, candidate, is_unread;

    for (;;) {
        is_unread = failed(fleet_slots_find(&current, &candidate, &identity));
        MUST(current >= 0 || !proven || is_unread);
        if (candidate >= 0)
            check(candidate, 1);
        if (current >= 0)
            check(current, candidate < 0 && !is_unread);
        if (is_unread) /* the same again: nothing may be written over what was not read */
            continue;
        if (candidate >= 0) {
            if (!failed(fleet_slots_read(candidate, &identity))) {
                proven = identity.generation; /* by a connection */
                failed(fleet_slots_erase(current));
            }
            continue;
        }
        if (current < 0) {
            obtain(0, 1);
            continue;
        }
        if (failed(fleet_slots_read(current, &identity)))
            continue;
        proven = identity.generation;
        if (proven == 3)
            return;
        obtain(!current, (uint32_t)proven + 1);
    }
}

static void power_up(unsigned long at)
{
    changes = calls = 0;
    cut_at = at;
    if (!setjmp(power))
        live();
}

static void begin(void)
{
    memset(flash, 0xFF, sizeof flash);
    memset(known, 0, sizeof known);
    next_key = 0;
    proven = certified = 0;
}

/* The life, cut at `at`; with `again`, each time once more in every change that follows. */
static unsigned long cut(unsigned long at, int again)
{
    unsigned long second, states = 0, kept = 0;
    int is_over;

    for (second = again ? 1 : 0;; second++) {
        begin();
        power_up(at);
        MUST(changes == at);
        kept = units;
        if (second)
            power_up(second);
        is_over = second && changes < second; /* it had recovered before */
        power_up(0);
        units = kept;
        MUST(proven == 3 && certified == 3);
        states += !is_over;
        if (is_over || !second)
            return states;
    }
}

static int slots(int again)
{
    unsigned long at, total, states = 0;

    MUST(!fleet_crypto_start());
    begin();
    power_up(0);
    total = changes;
    MUST(proven == 3 && certified == 3);
    for (is_from_end = 0; is_from_end < 2; is_from_end++)
        for (is_torn = 0; is_torn < 2; is_torn++)
            for (at = 1; at <= total; at++)
                for (part = 0, units = 0; part <= units; part += again ? 5 : 1)
                    states += cut(at, again);
    printf("%lu changes, %lu states\n", total, states);
    return 0;
}

/* The life, cut at `at` unless that is 0, then with a fault in each call of the port that follows. */
static unsigned long faulty(unsigned long at)
{
    unsigned long states, kept = 0;
    int is_over = 0;

    for (states = 0; !is_over; states++) {
        begin();
        if (at) {
            power_up(at);
            kept = units;
        }
        fault_at = states + 1;
        power_up(0);
        is_over = calls < fault_at;
        fault_at = 0;
        if (at)
            units = kept;
        MUST(proven == 3 && certified == 3);
    }
    return states - 1;
}

static int faults(int with_cut)
{
    unsigned long at, total, states = 0;

    MUST(!fleet_crypto_start());
    begin();
    power_up(0);
    total = with_cut ? changes : 0;
    for (is_from_end = 0; is_from_end < 2; is_from_end++)
        for (is_torn = 0; is_torn < 2; is_torn++)
            for (at = with_cut ? 1 : 0; at <= total; at++)
                for (part = 0, units = at ? 0 : 16; part <= units; part += 4)
                    states += faulty(at);
    printf("%lu states\n", states);
    return 0;
}

int main(int count, char **words)
{
    MUST(count > 1);
    if (!strcmp(words[1], "fuzz") && count == 4)
        return fuzz(words[2], strtoul(words[3], NULL, 10));
    if (!strcmp(words[1], "slots"))
        return slots(count > 2);
    return strcmp(words[1], "faults") ? parsers(words[1]) : faults(count > 2);
}
