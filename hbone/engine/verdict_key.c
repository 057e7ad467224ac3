/* Keys of kept verdicts: what a connection is, byte by byte. */
#include <string.h>

#include "verdict.h"

enum { VALUE_LARGEST = 512, READ_FIELDS = 3 };

static void put(struct verdict_key *k, const void *bytes, size_t size)
{
    if (!k->size || k->size + size > sizeof k->bytes) {
        k->size = 0;
        return;
    }
    memcpy(k->bytes + k->size, bytes, size);
    k->size += size;
}

static void put_text(struct verdict_key *k, const char *text, size_t size)
{
    uint16_t length = (uint16_t)size;
    if (size > VALUE_LARGEST) {
        k->size = 0;
        return;
    }
    put(k, &length, sizeof length);
    put(k, text, size);
}

static void begin(struct verdict_key *k, enum listener_kind kind, uint32_t tag)
{
    k->bytes[0] = (uint8_t)kind;
    k->size = 1;
    put(k, &tag, sizeof tag);
}

/* Without padding, whose bytes are undefined. */
static void put_ip(struct verdict_key *k, const struct address *a)
{
    put(k, &a->family, sizeof a->family);
    put(k, a->ip, sizeof a->ip);
    put(k, &a->scope, sizeof a->scope);
}

static void put_address(struct verdict_key *k, const struct address *a)
{
    put_ip(k, a);
    put(k, &a->port, sizeof a->port);
}

void verdict_key_captured(struct verdict_key *k, enum listener_kind kind, uint32_t tag, const struct address *local,
                          const struct address *peer)
{
    begin(k, kind, tag);
    put_address(k, local);
    if (kind != LISTENER_OUTBOUND)
        put_ip(k, peer);
}

/* How much of a Forwarded value is the `for` it begins with (RFC 7239), if that is an address as agents write it. */
static size_t for_parameter(const char *value, size_t size)
{
    static const char start[] = "for=\"";
    size_t n = sizeof start - 1;
    if (size < n || memcmp(value, start, n) != 0)
        return 0;
    while (n < size && value[n] && strchr("0123456789abcdef.:[]", value[n]))
        n++;
    return n < size && value[n] == '"' ? n + 1 : 0;
}

static int which(const struct field *f)
{
    static const char *const names[READ_FIELDS] = {"baggage", "forwarded", "x-forwarded-network"};
    for (int i = 0; i < READ_FIELDS; i++)
        if (f->name_size == strlen(names[i]) && memcmp(f->name, names[i], f->name_size) == 0)
            return i;
    return -1;
}

static void put_field(struct verdict_key *k, const struct field *f, bool forwarded)
{
    size_t skipped = forwarded ? for_parameter(f->value, f->value_size) : 0;
    uint8_t mark = skipped ? 2 : 1;
    put(k, &mark, sizeof mark);
    put_text(k, f->value + skipped, f->value_size - skipped);
}

void verdict_key_request(struct verdict_key *k, uint32_t tag, const struct address *local, const struct address *peer,
                         const char *identity, const struct field *authority, const struct field *fields, unsigned n)
{
    const struct field *read[READ_FIELDS] = {NULL};
    const uint8_t absent = 0;
    begin(k, LISTENER_HBONE, tag);
    put_address(k, local);
    put_ip(k, peer);
    put_text(k, identity, strlen(identity));
    put_text(k, authority->value, authority->value_size);
    for (unsigned i = 0; i < n; i++) {
        int at = which(&fields[i]);
        if (at < 0)
            continue;
        if (read[at]) { /* which of them counts is for the owner to say */
            k->size = 0;
            return;
        }
        read[at] = &fields[i];
    }
    for (int i = 0; i < READ_FIELDS; i++) {
        if (read[i])
            put_field(k, read[i], i == 1);
        else
            put(k, &absent, sizeof absent);
    }
}
