/* Memory for bytes on their way, recycled inside one worker.
 *
 * A *block* holds what a tunnel is about to seal or what its socket did not take. A *chunk* is a link of a
 * queue of bytes that a slow plain socket has still to take, or an incomplete TLS record. */
#ifndef HBONE_BUFFER_H
#define HBONE_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* X(name, value, what it is) */
#define BUFFER_SIZES(X)                                                                            \
    X(RECORD_PLAIN, 16384, "most plaintext of a TLS record")                                       \
    X(RECORD_OVERHEAD, 5 + 1 + 16, "a record's header, inner type and tag")                        \
    X(RECORD_LARGEST, 5 + RECORD_PLAIN + 256, "largest record accepted (RFC 8446 5.2)")            \
    X(READ_SIZE, 512 << 10, "one recv() of a tunnel; the worker's read buffer")                    \
    X(PLAIN_ROOM, 256 << 10, "DATA frames gathered before they are sealed")                        \
    X(PLAIN_SLACK, 32 << 10, "room for control frames behind them")                                \
    X(BLOCK_SIZE, (PLAIN_ROOM + PLAIN_SLACK) / RECORD_PLAIN * (RECORD_PLAIN + RECORD_OVERHEAD) + 4096, "a block") \
    X(CHUNK_SIZE, RECORD_LARGEST + 256, "bytes of a chunk")                                        \
    X(BLOCKS_KEPT, 8, "blocks a worker keeps for reuse")                                          \
    X(CHUNKS_KEPT, 1024, "chunks a worker keeps: a connection's largest window, so that bulk does without malloc")

#define X(name, value, what) name = value,
enum { BUFFER_SIZES(X) };
#undef X

struct chunk {
    struct chunk *next;
    uint32_t start, end;
    uint8_t bytes[CHUNK_SIZE];
};

struct byte_queue {
    struct chunk *head, *tail;
    size_t size;
};

struct buffers {
    struct chunk *chunks;
    unsigned n_chunks, least_chunks; /* kept; the fewest since the last trim */
    uint8_t *blocks[BLOCKS_KEPT];
    unsigned n_blocks, least_blocks;
};

uint8_t *block_get(struct buffers *b);
void block_put(struct buffers *b, uint8_t *block);
struct chunk *chunk_get(struct buffers *b);
void chunk_put(struct buffers *b, struct chunk *c);

/* Appends a copy; false without memory (a part may have been appended). */
bool queue_append(struct byte_queue *q, struct buffers *b, const uint8_t *bytes, size_t size);
/* Describes up to `most` pieces from the front; the number of pieces. */
int queue_peek(const struct byte_queue *q, struct iovec *pieces, int most);
void queue_drop(struct byte_queue *q, struct buffers *b, size_t size);
void queue_clear(struct byte_queue *q, struct buffers *b);
/* Gives back three quarters of what was not used since the last trim, beyond a little. */
void buffers_trim(struct buffers *b);
bool buffers_ample(const struct buffers *b);
void buffers_free(struct buffers *b);

#endif
