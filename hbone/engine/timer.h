/* Deadlines of one worker: a binary heap of timers that live inside their owners. */
#ifndef HBONE_TIMER_H
#define HBONE_TIMER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct timer {
    uint64_t when; /* milliseconds of the monotonic clock */
    uint32_t index; /* place in the heap + 1; 0: not armed */
    uint8_t kind;   /* whose it is; the worker knows */
};

struct timer_heap {
    struct timer **slots;
    size_t used, room, owners;
};

/* Each owner of a timer has room for it from its birth to its end, so that a deadline never fails for want of memory.
 * False without memory; then nothing was reserved. */
bool timer_reserve(struct timer_heap *heap);
void timer_release(struct timer_heap *heap);
/* Arms, or moves, the timer of one who has reserved. */
void timer_set(struct timer_heap *heap, struct timer *t, uint64_t when);
void timer_clear(struct timer_heap *heap, struct timer *t);
/* Takes out the earliest timer that is due; NULL when none is. */
struct timer *timer_due(struct timer_heap *heap, uint64_t now);
/* Milliseconds until the earliest one, -1 for never: epoll_wait's argument. */
int timer_wait(const struct timer_heap *heap, uint64_t now);
void timer_heap_free(struct timer_heap *heap);

#endif
