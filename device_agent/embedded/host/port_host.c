#define _POSIX_C_SOURCE 200809L

#include "port_host.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../bounds.h"
#include "../port.h"

static int connection = -1, flash = -1;
static unsigned long changes, cut_at, cut_eighths, reads, read_fault, change_fault;

int fleet_port_connect(const char *host, uint16_t port)
{
    struct addrinfo hints, *found, *each;
    char service[8];

    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    snprintf(service, sizeof service, "%u", (unsigned)port);
    if (getaddrinfo(host, service, &hints, &found))
        return -1;
    for (each = found; each && connection < 0; each = each->ai_next) {
        connection = socket(each->ai_family, SOCK_STREAM, 0);
        if (connection >= 0 && connect(connection, each->ai_addr, each->ai_addrlen))
            fleet_port_close();
    }
    freeaddrinfo(found);
    return connection < 0 ? -1 : 0;
}

/* Whether the socket becomes ready: 1, 0, or -1. */
static int ready(short events, uint32_t wait_ms)
{
    struct pollfd one;
    int found;

    one.fd = connection;
    one.events = events;
    found = poll(&one, 1, (int)wait_ms);
    return found < 0 && errno == EINTR ? 0 : found;
}

int fleet_port_read(uint8_t *data, size_t size, uint32_t wait_ms)
{
    int found = ready(POLLIN, wait_ms);
    ssize_t got;

    if (found <= 0)
        return found;
    got = recv(connection, data, size, 0);
    return got > 0 ? (int)got : -1;
}

int fleet_port_write(const uint8_t *data, size_t size)
{
    int found = ready(POLLOUT, 1000);
    ssize_t taken;

    if (found <= 0)
        return found;
    taken = send(connection, data, size, MSG_NOSIGNAL);
    return taken > 0 ? (int)taken : -1;
}

void fleet_port_close(void)
{
    if (connection >= 0)
        close(connection);
    connection = -1;
}

static unsigned long number_of(const char *name)
{
    const char *given = getenv(name);

    return given ? strtoul(given, NULL, 10) : 0;
}

int fleet_host_flash_open(const char *path)
{
    static uint8_t blank[FLEET_FLASH_SIZE];
    const char *cut = getenv("FLEET_CUT");

    if (cut && sscanf(cut, "%lu:%lu", &cut_at, &cut_eighths) != 2)
        return -1;
    read_fault = number_of("FLEET_READ_FAULT");
    change_fault = number_of("FLEET_CHANGE_FAULT");
    flash = open(path, O_RDWR | O_CREAT, 0600);
    if (flash < 0)
        return -1;
    if (lseek(flash, 0, SEEK_END) == (off_t)FLEET_FLASH_SIZE)
        return 0;
    memset(blank, 0xFF, sizeof blank);
    return pwrite(flash, blank, sizeof blank, 0) == (ssize_t)sizeof blank ? 0 : -1;
}

unsigned long fleet_host_flash_changes(void)
{
    return changes;
}

static int change(uint32_t offset, const uint8_t *data, size_t size)
{
    int is_cut = ++changes == cut_at;

    if (changes == change_fault)
        return -1;
    if (is_cut)
        size = size * cut_eighths / 8;
    if (pwrite(flash, data, size, (off_t)offset) != (ssize_t)size)
        return -1;
    if (is_cut)
        _exit(9);
    return 0;
}

int fleet_port_flash_read(uint32_t offset, uint8_t *data, size_t size)
{
    return ++reads != read_fault && size <= FLEET_FLASH_SIZE && offset <= FLEET_FLASH_SIZE - size &&
                   pread(flash, data, size, (off_t)offset) == (ssize_t)size
               ? 0
               : -1;
}

int fleet_port_flash_write(uint32_t offset, const uint8_t *data, size_t size)
{
    uint8_t before[64];
    size_t n;

    if (size > sizeof before || size % FLEET_FLASH_UNIT || offset % FLEET_FLASH_UNIT ||
        fleet_port_flash_read(offset, before, size))
        return -1;
    for (n = 0; n < size; n++)
        if (before[n] != 0xFF) /* as flash with ECC has it: nothing is written twice */
            return -1;
    return change(offset, data, size);
}

int fleet_port_flash_erase(uint32_t sector)
{
    uint8_t blank[FLEET_SECTOR_SIZE];

    if (sector >= FLEET_FLASH_SIZE / FLEET_SECTOR_SIZE)
        return -1;
    memset(blank, 0xFF, sizeof blank);
    return change(sector * FLEET_SECTOR_SIZE, blank, sizeof blank);
}

int fleet_port_random(uint8_t *data, size_t size)
{
    int source = open("/dev/urandom", O_RDONLY);
    ssize_t got = source < 0 ? -1 : read(source, data, size);

    if (source >= 0)
        close(source);
    return got == (ssize_t)size ? 0 : -1;
}

uint64_t fleet_port_time(void)
{
    const char *given = getenv("FLEET_TIME"); /* 0: a clock that is not set */

    return given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
}

uint32_t fleet_port_ticks_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint32_t)now.tv_sec * 1000u + (uint32_t)(now.tv_nsec / 1000000);
}
