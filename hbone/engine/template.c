#include "template.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "hpack.h"

enum { VALUE_LARGEST = 4096, PIECE_LARGEST = ADDRESS_TEXT + 16 };

bool template_varies(const char *value, size_t size)
{
    return memchr(value, PLACE_CLIENT, size) || memchr(value, PLACE_RANDOM, size);
}

/* splitmix64: identifiers of traces need to differ, not to be unguessable. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static size_t fill_client(char piece[PIECE_LARGEST], const struct address *client)
{
    char ip[ADDRESS_TEXT];
    address_text(client, ip);
    const char *form = client->family == AF_INET6 ? "[%s]:%u" : "%s:%u";
    return (size_t)snprintf(piece, PIECE_LARGEST, form, ip, (unsigned)client->port);
}

static size_t fill_random(char piece[PIECE_LARGEST], uint64_t *random)
{
    uint64_t number = next_random(random);
    return (size_t)snprintf(piece, PIECE_LARGEST, "%016" PRIx64, number ? number : 1); /* all zeros is no identifier */
}

/* The filled-in value's size, or -1 when it does not fit. */
static ptrdiff_t expand(char *out, const char *value, const struct address *client, uint64_t *random)
{
    size_t size = 0;
    for (; *value; value++) {
        char piece[PIECE_LARGEST] = {*value};
        size_t n = *value == PLACE_CLIENT   ? fill_client(piece, client)
                   : *value == PLACE_RANDOM ? fill_random(piece, random)
                                            : 1;
        if (size + n > VALUE_LARGEST)
            return -1;
        memcpy(out + size, piece, n);
        size += n;
    }
    return (ptrdiff_t)size;
}

bool template_encode(uint8_t *block, size_t *size, size_t room, const char *texts, unsigned n, const struct address *client,
                     uint64_t *random)
{
    char value[VALUE_LARGEST];
    for (unsigned i = 0; i < n; i += 2) {
        const char *name = texts;
        texts += strlen(texts) + 1;
        ptrdiff_t filled = expand(value, texts, client, random);
        texts += strlen(texts) + 1;
        if (filled < 0 || !hpack_encode_field(block, size, room, name, strlen(name), value, (size_t)filled))
            return false;
    }
    return true;
}
