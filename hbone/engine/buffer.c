#include "buffer.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNKS_FEW = 16, BLOCKS_FEW = 2 };

/* A sanitizer sees the use of freed memory only when it was given back: nothing is kept for reuse there. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
enum { KEEP_CHUNKS = 0, KEEP_BLOCKS = 0 };
#else
enum { KEEP_CHUNKS = CHUNKS_KEPT, KEEP_BLOCKS = BLOCKS_KEPT };
#endif

uint8_t *block_get(struct buffers *b)
{
    if (!b->n_blocks)
        return malloc(BLOCK_SIZE);
    uint8_t *block = b->blocks[--b->n_blocks];
    if (b->n_blocks < b->least_blocks)
        b->least_blocks = b->n_blocks;
    return block;
}

void block_put(struct buffers *b, uint8_t *block)
{
    if (block && b->n_blocks < KEEP_BLOCKS)
        b->blocks[b->n_blocks++] = block;
    else
        free(block);
}

struct chunk *chunk_get(struct buffers *b)
{
    struct chunk *c = b->chunks;
    if (c) {
        b->chunks = c->next;
        if (--b->n_chunks < b->least_chunks)
            b->least_chunks = b->n_chunks;
    } else if (!(c = malloc(sizeof *c))) {
        return NULL;
    }
    c->next = NULL;
    c->start = c->end = 0;
    return c;
}

void chunk_put(struct buffers *b, struct chunk *c)
{
    if (!c)
        return;
    if (b->n_chunks >= KEEP_CHUNKS) {
        free(c);
        return;
    }
    c->next = b->chunks;
    b->chunks = c;
    b->n_chunks++;
}

bool queue_append(struct byte_queue *q, struct buffers *b, const uint8_t *bytes, size_t size)
{
    while (size) {
        struct chunk *c = q->tail;
        if (!c || c->end == CHUNK_SIZE) {
            if (!(c = chunk_get(b)))
                return false;
            if (q->tail)
                q->tail->next = c;
            else
                q->head = c;
            q->tail = c;
        }
        size_t n = CHUNK_SIZE - c->end;
        if (n > size)
            n = size;
        memcpy(c->bytes + c->end, bytes, n);
        c->end += (uint32_t)n;
        q->size += n;
        bytes += n;
        size -= n;
    }
    return true;
}

int queue_peek(const struct byte_queue *q, struct iovec *pieces, int most)
{
    int n = 0;
    for (struct chunk *c = q->head; c && n < most; c = c->next, n++)
        pieces[n] = (struct iovec){c->bytes + c->start, c->end - c->start};
    return n;
}

void queue_drop(struct byte_queue *q, struct buffers *b, size_t size)
{
    q->size -= size;
    while (size) {
        struct chunk *c = q->head;
        size_t n = c->end - c->start;
        if (n > size) {
            c->start += (uint32_t)size;
            return;
        }
        size -= n;
        q->head = c->next;
        if (!q->head)
            q->tail = NULL;
        chunk_put(b, c);
    }
}

void queue_clear(struct byte_queue *q, struct buffers *b)
{
    queue_drop(q, b, q->size);
}

bool buffers_ample(const struct buffers *b)
{
    return b->n_chunks > CHUNKS_FEW || b->n_blocks > BLOCKS_FEW;
}

void buffers_trim(struct buffers *b)
{
    unsigned chunks = b->n_chunks - b->least_chunks + b->least_chunks / 4;
    unsigned blocks = b->n_blocks - b->least_blocks + b->least_blocks / 4;
    while (b->n_chunks > chunks && b->n_chunks > CHUNKS_FEW) {
        struct chunk *c = b->chunks;
        b->chunks = c->next;
        b->n_chunks--;
        free(c);
    }
    while (b->n_blocks > blocks && b->n_blocks > BLOCKS_FEW)
        free(b->blocks[--b->n_blocks]);
    b->least_chunks = b->n_chunks;
    b->least_blocks = b->n_blocks;
}

void buffers_free(struct buffers *b)
{
    while (b->chunks) {
        struct chunk *c = b->chunks;
        b->chunks = c->next;
        free(c);
    }
    while (b->n_blocks)
        free(b->blocks[--b->n_blocks]);
    b->n_chunks = 0;
}
