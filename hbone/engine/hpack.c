#include "hpack.h"

#include <stdlib.h>
#include <string.h>

#include "hpack_static.h"

enum {
    ENTRY_OVERHEAD = 32, /* RFC 7541 4.1 */
    TABLE_ENTRIES = HPACK_TABLE_SIZE / ENTRY_OVERHEAD,
    STRING_LARGEST = HPACK_BLOCK_LARGEST * 8 / 5 + 1, /* the shortest Huffman code has 5 bits */
    FIRST_DYNAMIC = HPACK_STATIC + 1,
};

struct entry {
    uint16_t offset, name_size, value_size;
};

/* Entries in the order they came, texts one behind the other in `bytes`; the oldest goes first. */
struct hpack_table {
    struct entry ring[TABLE_ENTRIES];
    unsigned oldest, n;
    uint32_t size; /* RFC 7541 4.1 */
    uint32_t end;  /* of the texts */
    char bytes[HPACK_TABLE_SIZE];
};

struct reader {
    const uint8_t *p, *end;
};

bool header_list_init(struct header_list *list, size_t limit)
{
    memset(list, 0, sizeof *list);
    list->limit = limit;
    list->arena = malloc(limit + 2 * STRING_LARGEST);
    return list->arena != NULL;
}

void header_list_free(struct header_list *list)
{
    free(list->arena);
    list->arena = NULL;
}

void hpack_decoder_init(struct hpack_decoder *d)
{
    d->table = NULL;
    d->limit = HPACK_TABLE_SIZE;
}

void hpack_decoder_free(struct hpack_decoder *d)
{
    free(d->table);
    d->table = NULL;
}

/* ---- the dynamic table */

static struct entry *table_entry(struct hpack_table *t, unsigned age)
{
    return &t->ring[(t->oldest + t->n - 1 - age) % TABLE_ENTRIES];
}

static void table_shrink(struct hpack_table *t, uint32_t limit)
{
    while (t->size > limit) {
        const struct entry *e = &t->ring[t->oldest];
        t->size -= ENTRY_OVERHEAD + e->name_size + (uint32_t)e->value_size;
        t->oldest = (t->oldest + 1) % TABLE_ENTRIES;
        t->n--;
    }
    if (!t->n)
        t->end = 0;
}

/* Moves the texts to the front, when the free bytes are before them. */
static void table_compact(struct hpack_table *t)
{
    uint16_t start = t->n ? t->ring[t->oldest].offset : (uint16_t)t->end;
    memmove(t->bytes, t->bytes + start, t->end - start);
    t->end -= start;
    for (unsigned i = 0; i < t->n; i++)
        t->ring[(t->oldest + i) % TABLE_ENTRIES].offset -= start;
}

/* The field's texts are in the arena, so eviction cannot take them away. */
static enum hpack_status table_insert(struct hpack_decoder *d, const struct field *f)
{
    size_t size = ENTRY_OVERHEAD + (size_t)f->name_size + f->value_size;
    if (!d->table && !(d->table = calloc(1, sizeof *d->table)))
        return HPACK_NO_MEMORY;
    struct hpack_table *t = d->table;
    if (size > d->limit) { /* RFC 7541 4.4: empties the table, and is no error */
        table_shrink(t, 0);
        return HPACK_OK;
    }
    table_shrink(t, d->limit - (uint32_t)size);
    if (t->end + f->name_size + f->value_size > sizeof t->bytes)
        table_compact(t);
    t->ring[(t->oldest + t->n) % TABLE_ENTRIES] =
        (struct entry){(uint16_t)t->end, (uint16_t)f->name_size, (uint16_t)f->value_size};
    memcpy(t->bytes + t->end, f->name, f->name_size);
    memcpy(t->bytes + t->end + f->name_size, f->value, f->value_size);
    t->end += f->name_size + f->value_size;
    t->size += (uint32_t)size;
    t->n++;
    return HPACK_OK;
}

static bool lookup(const struct hpack_decoder *d, uint32_t index, struct field *f)
{
    if (index == 0)
        return false;
    if (index <= HPACK_STATIC) {
        f->name = hpack_static[index - 1].name;
        f->name_size = hpack_static[index - 1].name_size;
        f->value = hpack_static[index - 1].value;
        f->value_size = hpack_static[index - 1].value_size;
        return true;
    }
    if (!d->table || index - FIRST_DYNAMIC >= d->table->n)
        return false;
    const struct entry *e = table_entry(d->table, index - FIRST_DYNAMIC);
    f->name = d->table->bytes + e->offset;
    f->name_size = e->name_size;
    f->value = f->name + e->name_size;
    f->value_size = e->value_size;
    return true;
}

/* ---- reading */

/* An integer with a prefix of `bits` bits (RFC 7541 5.1); at most 4 bytes behind it. */
static bool read_integer(struct reader *r, unsigned bits, uint32_t *value)
{
    uint32_t mask = (1u << bits) - 1;
    if (r->p == r->end)
        return false;
    *value = *r->p++ & mask;
    if (*value < mask)
        return true;
    for (unsigned shift = 0; shift < 28; shift += 7) {
        if (r->p == r->end)
            return false;
        uint8_t byte = *r->p++;
        *value += (uint32_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return true;
    }
    return false;
}

/* A string, copied behind what the arena holds. */
static bool read_string(struct reader *r, struct header_list *list, const char **text, uint32_t *size)
{
    uint32_t length;
    if (r->p == r->end)
        return false;
    bool huffman = *r->p & 0x80;
    if (!read_integer(r, 7, &length) || length > (size_t)(r->end - r->p))
        return false;
    char *out = list->arena + list->used;
    ssize_t made = length;
    if (huffman)
        made = huffman_decode(r->p, length, out, STRING_LARGEST);
    else
        memcpy(out, r->p, length);
    if (made < 0)
        return false;
    r->p += length;
    *text = out;
    *size = (uint32_t)made;
    list->used += (size_t)made;
    return true;
}

static void copy_in(struct header_list *list, const char **text, uint32_t size)
{
    memcpy(list->arena + list->used, *text, size);
    *text = list->arena + list->used;
    list->used += size;
}

/* Keeps the field when the list may still grow; `start` is the arena's fill before the field came. */
static enum hpack_status keep(struct header_list *list, const struct field *f, size_t start)
{
    list->size += ENTRY_OVERHEAD + (size_t)f->name_size + f->value_size;
    if (list->size > HPACK_LIST_LARGEST)
        return HPACK_TOO_LARGE;
    if (list->size > list->limit || list->n == HPACK_FIELDS)
        list->over = true;
    if (list->over)
        list->used = start;
    else
        list->fields[list->n++] = *f;
    return HPACK_OK;
}

static enum hpack_status read_indexed(struct hpack_decoder *d, struct reader *r, struct header_list *list)
{
    uint32_t index;
    struct field f;
    size_t start = list->used;
    if (!read_integer(r, 7, &index) || !lookup(d, index, &f))
        return HPACK_BROKEN;
    if (index > HPACK_STATIC && !list->over) {
        copy_in(list, &f.name, f.name_size);
        copy_in(list, &f.value, f.value_size);
    }
    return keep(list, &f, start);
}

static enum hpack_status read_literal(struct hpack_decoder *d, struct reader *r, struct header_list *list,
                                      unsigned prefix, bool insert)
{
    uint32_t index;
    struct field f;
    size_t start = list->used;
    if (!read_integer(r, prefix, &index))
        return HPACK_BROKEN;
    if (index) {
        if (!lookup(d, index, &f))
            return HPACK_BROKEN;
        if (index > HPACK_STATIC)
            copy_in(list, &f.name, f.name_size);
    } else if (!read_string(r, list, &f.name, &f.name_size)) {
        return HPACK_BROKEN;
    }
    if (!read_string(r, list, &f.value, &f.value_size))
        return HPACK_BROKEN;
    enum hpack_status status = insert ? table_insert(d, &f) : HPACK_OK;
    return status == HPACK_OK ? keep(list, &f, start) : status;
}

static enum hpack_status read_size_update(struct hpack_decoder *d, struct reader *r)
{
    uint32_t limit;
    if (!read_integer(r, 5, &limit) || limit > HPACK_TABLE_SIZE)
        return HPACK_BROKEN;
    d->limit = limit;
    if (d->table)
        table_shrink(d->table, limit);
    return HPACK_OK;
}

enum hpack_status hpack_decode(struct hpack_decoder *d, const uint8_t *block, size_t size,
                               struct header_list *list)
{
    struct reader r = {block, block + size};
    bool fields_began = false;
    enum hpack_status status = HPACK_OK;
    list->n = 0;
    list->size = list->used = 0;
    list->over = false;
    if (size > HPACK_BLOCK_LARGEST)
        return HPACK_TOO_LARGE;
    while (r.p < r.end && status == HPACK_OK) {
        uint8_t first = *r.p;
        if ((first & 0xe0) == 0x20) { /* only before the first field: RFC 7541 4.2 */
            status = fields_began ? HPACK_BROKEN : read_size_update(d, &r);
            continue;
        }
        fields_began = true;
        if (first & 0x80)
            status = read_indexed(d, &r, list);
        else if (first & 0x40)
            status = read_literal(d, &r, list, 6, true);
        else
            status = read_literal(d, &r, list, 4, false);
    }
    return status;
}
