/* Header values with places that are filled in for each connection. */
#ifndef HBONE_TEMPLATE_H
#define HBONE_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "address.h"

/* Bytes that no header value may contain stand for a place. */
enum {
    PLACE_CLIENT = 1, /* the client's address and port, IPv6 in brackets */
    PLACE_RANDOM = 2, /* 16 random hexadecimal digits */
};

/* Whether a value has places. */
bool template_varies(const char *value, size_t size);
/* Appends fields (name, value, ... each NUL-terminated) to a header block; false when `room` does not suffice. */
bool template_encode(uint8_t *block, size_t *size, size_t room, const char *texts, unsigned n, const struct address *client,
                     uint64_t *random);

#endif
