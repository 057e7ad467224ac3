#include "message.h"

#include <string.h>

static bool is(const char *text, uint32_t size, const char *wanted)
{
    return size == strlen(wanted) && memcmp(text, wanted, size) == 0;
}

/* A token in lower case (RFC 9113 8.2.1, RFC 9110 5.6.2). */
static bool name_valid(const char *name, size_t size)
{
    static const char marks[] = "!#$%&'*+-.^_`|~";
    for (size_t i = 0; i < size; i++) {
        char c = name[i];
        bool good = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || (c && strchr(marks, c));
        if (!good)
            return false;
    }
    return size > 0;
}

static bool blank(char c)
{
    return c == ' ' || c == '\t';
}

static bool value_valid(const char *value, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)value[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return false;
    }
    return !size || (!blank(value[0]) && !blank(value[size - 1]));
}

/* Fields that belong to one hop of HTTP/1 (RFC 9113 8.2.2). */
static bool connection_specific(const struct field *f)
{
    static const char *const names[] = {"connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (is(f->name, f->name_size, names[i]))
            return true;
    return is(f->name, f->name_size, "te") && !is(f->value, f->value_size, "trailers");
}

static bool pseudo(const struct field *f)
{
    return f->name_size && f->name[0] == ':';
}

static bool regular_valid(const struct field *f)
{
    return name_valid(f->name, f->name_size) && value_valid(f->value, f->value_size) && !connection_specific(f);
}

/* All fields behind `from` are regular and valid. */
static bool rest_valid(const struct header_list *list, unsigned from)
{
    for (unsigned i = from; i < list->n; i++)
        if (!regular_valid(&list->fields[i]))
            return false;
    return true;
}

bool message_field_valid(const char *name, size_t name_size, const char *value, size_t value_size)
{
    struct field f = {name, value, (uint32_t)name_size, (uint32_t)value_size};
    return regular_valid(&f);
}

static bool set_once(struct field *slot, const struct field *f)
{
    if (slot->value)
        return false;
    *slot = *f;
    return value_valid(f->value, f->value_size);
}

enum message_verdict message_request(const struct header_list *list, struct request *r)
{
    struct field scheme = {0}, path = {0};
    unsigned i = 0;
    memset(r, 0, sizeof *r);
    for (; i < list->n && pseudo(&list->fields[i]); i++) {
        const struct field *f = &list->fields[i];
        struct field *slot = is(f->name, f->name_size, ":method")      ? &r->method
                             : is(f->name, f->name_size, ":authority") ? &r->authority
                             : is(f->name, f->name_size, ":scheme")    ? &scheme
                             : is(f->name, f->name_size, ":path")      ? &path
                                                                       : NULL;
        if (!slot || !set_once(slot, f))
            return MESSAGE_MALFORMED;
    }
    r->first_field = i;
    if (!rest_valid(list, i) || !r->method.value_size)
        return MESSAGE_MALFORMED;
    if (is(r->method.value, r->method.value_size, "CONNECT"))
        return scheme.value || path.value || !r->authority.value ? MESSAGE_BAD_CONNECT : MESSAGE_FINE;
    return scheme.value && path.value ? MESSAGE_NOT_CONNECT : MESSAGE_MALFORMED;
}

unsigned message_status(const struct header_list *list)
{
    if (!list->n || !is(list->fields[0].name, list->fields[0].name_size, ":status") || list->fields[0].value_size != 3)
        return 0;
    const char *digits = list->fields[0].value;
    unsigned status = 0;
    for (int i = 0; i < 3; i++) {
        if (digits[i] < '0' || digits[i] > '9')
            return 0;
        status = 10 * status + (unsigned)(digits[i] - '0');
    }
    return status >= 100 && rest_valid(list, 1) ? status : 0;
}

bool message_trailers(const struct header_list *list)
{
    return rest_valid(list, 0);
}
