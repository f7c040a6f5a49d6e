/* What the device's code makes of bytes, without a network.
 *
 * harness base64|http|certs|extensions|mqtt   reads standard input, and gives the parser each prefix of it, in memory of
 *     exactly that size; prints one digit a prefix, the status. Then each byte, changed in each bit, of inputs
 *     up to FLIPPED_MAX: no more than no crash is asked of that.
 * harness slots [again]   power cuts in every write and erasure of three certificates' lives; `again`: each followed by
 *     another one while it recovers. Prints the number of states.
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

static int parse(const char *kind, uint8_t *data, size_t size)
{
    struct fleet_span certificates[FLEET_CERTIFICATES_MAX], given;
    struct fleet_http_answer answer;
    struct fleet_packet packet;
    size_t count;

    given.data = data;
    given.size = size;
    if (!strcmp(kind, "base64"))
        return fleet_base64_decode(data, size, &count);
    if (!strcmp(kind, "http"))
        return fleet_http_answer(data, size, &answer);
    if (!strcmp(kind, "certs"))
        return fleet_certs_only(data, size, certificates, &count);
    if (!strcmp(kind, "extensions"))
        return fleet_subject_alt_name(given, certificates);
    MUST(!strcmp(kind, "mqtt"));
    return fleet_packet_parse(data, size, &packet, &count);
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

/* Flash in memory, whose power is cut in the change number `cut_at`: `part` units of it are done, and the next ones
 * hold garbage if `is_torn`. */
static uint8_t flash[FLEET_FLASH_SIZE];
static unsigned long changes, cut_at, part, units;
static int is_torn, is_from_end;
static jmp_buf power;

static int change(uint32_t offset, const uint8_t *data, size_t size, size_t unit)
{
    size_t n, count = size / unit, done = count;

    if (++changes == cut_at) {
        units = count;
        done = part < count ? part : count;
    }
    for (n = 0; n < done; n++) {
        size_t at = (is_from_end && changes == cut_at ? count - 1 - n : n) * unit;
        memcpy(flash + offset + at, data + at, unit);
    }
    if (changes != cut_at)
        return 0;
    if (is_torn && !is_from_end && done < count)
        memset(flash + offset + done * unit, 0xA5, unit);
    longjmp(power, 1);
}

int fleet_port_flash_read(uint32_t offset, uint8_t *data, size_t size)
{
    MUST(offset + size <= FLEET_FLASH_SIZE);
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

static void obtain(int slot, uint32_t generation)
{
    if (fleet_slots_read_key(slot, &identity)) {
        identity.key_size = 121;
        memset(identity.key, ++next_key, identity.key_size);
        MUST(!fleet_slots_keep_key(slot, &identity));
    }
    if (known[generation] != identity.key[0]) {
        known[generation] = identity.key[0];
        certified++;
    }
    identity.generation = generation;
    make_chain();
    MUST(!fleet_slots_keep_chain(slot, &identity));
}

/* What is in `slot` is a whole pair; the newest is what a connection has proven, or its successor. */
static void check(int slot, int is_newest)
{
    MUST(!fleet_slots_read(slot, &identity));
    MUST(identity.generation <= proven + 1 && (!is_newest || identity.generation >= proven));
    MUST(identity.key[0] == known[identity.generation] && identity.key[120] == identity.key[0]);
    MUST(identity.chain_size == 700 + identity.generation && identity.chain[700] == identity.key[0]);
}

static void live(void)
{
    int current, candidate;

    for (;;) {
        fleet_slots_find(&current, &candidate, &identity);
        MUST(current >= 0 || !proven);
        if (candidate >= 0)
            check(candidate, 1);
        if (current >= 0)
            check(current, candidate < 0);
        if (candidate >= 0) {
            MUST(!fleet_slots_read(candidate, &identity));
            proven = identity.generation; /* by a connection */
            MUST(!fleet_slots_erase(current));
            continue;
        }
        if (current < 0) {
            obtain(0, 1);
            continue;
        }
        proven = identity.generation;
        if (proven == 3)
            return;
        obtain(!current, (uint32_t)proven + 1);
    }
}

static void power_up(unsigned long at)
{
    changes = 0;
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

int main(int count, char **words)
{
    MUST(count > 1);
    return strcmp(words[1], "slots") ? parsers(words[1]) : slots(count > 2);
}
