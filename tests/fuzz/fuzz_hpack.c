/* HPACK: any block is decoded or refused; what was decoded can be encoded and decodes the same again.
 *
 * The input is a sequence of blocks (a length of two octets before each) for one decoder, so that its
 * dynamic table lives on from block to block. */
#include <stdlib.h>
#include <string.h>

#include "hpack.h"

enum { LIST_LIMIT = 16 << 10, BLOCK_ROOM = 64 << 10 };

static void require(int holds)
{
    if (!holds)
        abort();
}

static int inside(const struct header_list *list, const char *text, size_t size)
{
    return text >= list->arena && text + size <= list->arena + list->used;
}

static void again(const struct header_list *list)
{
    static uint8_t block[BLOCK_ROOM];
    struct header_list other;
    struct hpack_decoder fresh;
    size_t size = 0;
    for (unsigned i = 0; i < list->n; i++) {
        const struct field *f = &list->fields[i];
        require(hpack_encode_field(block, &size, sizeof block, f->name, f->name_size, f->value, f->value_size));
    }
    require(header_list_init(&other, LIST_LIMIT));
    hpack_decoder_init(&fresh);
    require(hpack_decode(&fresh, block, size, &other) == HPACK_OK);
    require(other.n == list->n && !other.over);
    for (unsigned i = 0; i < list->n; i++) {
        const struct field *a = &list->fields[i], *b = &other.fields[i];
        require(a->name_size == b->name_size && !memcmp(a->name, b->name, a->name_size));
        require(a->value_size == b->value_size && !memcmp(a->value, b->value, a->value_size));
    }
    hpack_decoder_free(&fresh);
    header_list_free(&other);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hpack_decoder decoder;
    struct header_list list;
    require(header_list_init(&list, LIST_LIMIT));
    hpack_decoder_init(&decoder);
    while (size >= 2) {
        size_t length = (size_t)(data[0] << 8 | data[1]);
        data += 2, size -= 2;
        length = length < size ? length : size;
        uint8_t *block = malloc(length ? length : 1); /* exact, so that a read beyond the end is seen */
        memcpy(block, data, length);
        enum hpack_status status = hpack_decode(&decoder, block, length, &list);
        if (status == HPACK_OK) {
            require(list.n <= HPACK_FIELDS);
            for (unsigned i = 0; i < list.n; i++) {
                const struct field *f = &list.fields[i];
                require(f->name_size == 0 || inside(&list, f->name, f->name_size) || f->name_size < 64);
                require(f->value_size == 0 || inside(&list, f->value, f->value_size) || f->value_size < 64);
            }
            if (!list.over)
                again(&list);
        }
        free(block);
        if (status != HPACK_OK)
            break;
        data += length, size -= length;
    }
    hpack_decoder_free(&decoder);
    header_list_free(&list);
    return 0;
}
