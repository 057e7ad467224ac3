/* HPACK (RFC 7541). The decoder keeps the peer's dynamic table and bounds everything it makes; the
 * encoder writes literals that never enter a table, so a block can be encoded before it is known which
 * connection will carry it. */
#ifndef HBONE_HPACK_H
#define HBONE_HPACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    HPACK_TABLE_SIZE = 4096,        /* SETTINGS_HEADER_TABLE_SIZE, left at its default */
    HPACK_BLOCK_LARGEST = 128 << 10, /* of a compressed block, whatever it decodes to */
    HPACK_LIST_LARGEST = 128 << 10,  /* of a decoded list: beyond it the connection ends */
    HPACK_FIELDS = 64,
};

struct field {
    const char *name, *value; /* in the list's arena; not terminated */
    uint32_t name_size, value_size;
};

/* Fields of one block. `over` says that more came than `limit` bytes (RFC 9113 6.5.2 arithmetic) or
 * HPACK_FIELDS fields; the rest was decoded for the table's sake and dropped. */
struct header_list {
    struct field fields[HPACK_FIELDS];
    unsigned n;
    bool over;
    size_t size, limit;
    char *arena;
    size_t used;
};

enum hpack_status {
    HPACK_OK,
    HPACK_BROKEN,    /* COMPRESSION_ERROR */
    HPACK_TOO_LARGE, /* ENHANCE_YOUR_CALM */
    HPACK_NO_MEMORY,
};

struct hpack_table;

struct hpack_decoder {
    struct hpack_table *table; /* made with the first insertion */
    uint32_t limit;            /* the peer's last size update */
};

bool header_list_init(struct header_list *list, size_t limit);
void header_list_free(struct header_list *list);

void hpack_decoder_init(struct hpack_decoder *d);
void hpack_decoder_free(struct hpack_decoder *d);
/* Decodes one whole block into `list`, replacing what was there. */
enum hpack_status hpack_decode(struct hpack_decoder *d, const uint8_t *block, size_t size,
                               struct header_list *list);

/* Appends ":method: CONNECT", ":authority", or a field; false when `room` does not suffice. */
bool hpack_encode_connect(uint8_t *block, size_t *size, size_t room, const char *authority,
                          size_t authority_size);
bool hpack_encode_field(uint8_t *block, size_t *size, size_t room, const char *name, size_t name_size,
                        const char *value, size_t value_size);
bool hpack_encode_status(uint8_t *block, size_t *size, size_t room, unsigned status);

/* Huffman coding of RFC 7541 appendix B: the decoded size, or -1 for EOS inside, bad padding, or more
 * than `room` bytes. */
ssize_t huffman_decode(const uint8_t *in, size_t size, char *out, size_t room);

#endif
