/* The host's port layer: sockets, and flash that is a file. */
#ifndef FLEET_PORT_HOST_H
#define FLEET_PORT_HOST_H

/* Opens the flash in `path`, or makes one that is erased. 0, or -1.
 *
 * FLEET_CUT=N:EIGHTHS in the environment is a power cut in the Nth write or erasure: the process ends (exit code 9)
 * when so many eighths of it have been done. */
int fleet_host_flash_open(const char *path);

/* Writes and erasures so far. */
unsigned long fleet_host_flash_changes(void);

#endif
