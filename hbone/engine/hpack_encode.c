#include <string.h>

#include "hpack.h"

enum { INDEX_AUTHORITY = 1, INDEX_METHOD = 2, INDEX_STATUS = 8, INDEX_STATUS_200 = 8 };

static bool put_byte(uint8_t *block, size_t *size, size_t room, unsigned byte)
{
    if (*size >= room)
        return false;
    block[(*size)++] = (uint8_t)byte;
    return true;
}

static bool put_integer(uint8_t *block, size_t *size, size_t room, unsigned first, unsigned bits, size_t value)
{
    size_t mask = (1u << bits) - 1;
    if (value < mask)
        return put_byte(block, size, room, first | (unsigned)value);
    if (!put_byte(block, size, room, first | (unsigned)mask))
        return false;
    for (value -= mask; value >= 0x80; value >>= 7)
        if (!put_byte(block, size, room, 0x80 | (value & 0x7f)))
            return false;
    return put_byte(block, size, room, (unsigned)value);
}

static bool put_string(uint8_t *block, size_t *size, size_t room, const char *text, size_t text_size)
{
    if (!put_integer(block, size, room, 0, 7, text_size) || text_size > room - *size)
        return false;
    memcpy(block + *size, text, text_size);
    *size += text_size;
    return true;
}

/* A literal without indexing (RFC 7541 6.2.2) whose name stands in the static table. */
static bool put_known(uint8_t *block, size_t *size, size_t room, unsigned index, const char *value,
                      size_t value_size)
{
    return put_integer(block, size, room, 0, 4, index) && put_string(block, size, room, value, value_size);
}

bool hpack_encode_connect(uint8_t *block, size_t *size, size_t room, const char *authority,
                          size_t authority_size)
{
    return put_known(block, size, room, INDEX_METHOD, "CONNECT", 7) &&
           put_known(block, size, room, INDEX_AUTHORITY, authority, authority_size);
}

bool hpack_encode_field(uint8_t *block, size_t *size, size_t room, const char *name, size_t name_size,
                        const char *value, size_t value_size)
{
    return put_byte(block, size, room, 0) && put_string(block, size, room, name, name_size) &&
           put_string(block, size, room, value, value_size);
}

bool hpack_encode_status(uint8_t *block, size_t *size, size_t room, unsigned status)
{
    char digits[3] = {(char)('0' + status / 100 % 10), (char)('0' + status / 10 % 10), (char)('0' + status % 10)};
    if (status == 200)
        return put_byte(block, size, room, 0x80 | INDEX_STATUS_200);
    return put_known(block, size, room, INDEX_STATUS, digits, sizeof digits);
}
