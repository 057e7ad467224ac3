#include "timer.h"

#include <limits.h>
#include <stdlib.h>

static void place(struct timer_heap *heap, size_t i, struct timer *t)
{
    heap->slots[i] = t;
    t->index = (uint32_t)i + 1;
}

static void sift_up(struct timer_heap *heap, size_t i)
{
    struct timer *t = heap->slots[i];
    while (i > 0 && heap->slots[(i - 1) / 2]->when > t->when) {
        place(heap, i, heap->slots[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    place(heap, i, t);
}

static void sift_down(struct timer_heap *heap, size_t i)
{
    struct timer *t = heap->slots[i];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= heap->used)
            break;
        if (child + 1 < heap->used && heap->slots[child + 1]->when < heap->slots[child]->when)
            child++;
        if (heap->slots[child]->when >= t->when)
            break;
        place(heap, i, heap->slots[child]);
        i = child;
    }
    place(heap, i, t);
}

bool timer_reserve(struct timer_heap *heap)
{
    if (heap->owners == heap->room) {
        size_t room = heap->room ? 2 * heap->room : 64;
        struct timer **slots = realloc(heap->slots, room * sizeof *slots);
        if (!slots)
            return false;
        heap->slots = slots;
        heap->room = room;
    }
    heap->owners++;
    return true;
}

void timer_release(struct timer_heap *heap)
{
    heap->owners--;
}

void timer_set(struct timer_heap *heap, struct timer *t, uint64_t when)
{
    if (t->index) {
        uint64_t before = t->when;
        t->when = when;
        if (when < before)
            sift_up(heap, t->index - 1);
        else
            sift_down(heap, t->index - 1);
        return;
    }
    t->when = when;
    place(heap, heap->used++, t);
    sift_up(heap, t->index - 1);
}

void timer_clear(struct timer_heap *heap, struct timer *t)
{
    if (!t->index)
        return;
    size_t i = t->index - 1;
    t->index = 0;
    struct timer *last = heap->slots[--heap->used];
    if (last == t)
        return;
    place(heap, i, last);
    sift_up(heap, i);
    sift_down(heap, last->index - 1);
}

struct timer *timer_due(struct timer_heap *heap, uint64_t now)
{
    if (!heap->used || heap->slots[0]->when > now)
        return NULL;
    struct timer *t = heap->slots[0];
    timer_clear(heap, t);
    return t;
}

int timer_wait(const struct timer_heap *heap, uint64_t now)
{
    if (!heap->used)
        return -1;
    uint64_t when = heap->slots[0]->when;
    if (when <= now)
        return 0;
    return when - now > INT_MAX ? INT_MAX : (int)(when - now);
}

void timer_heap_free(struct timer_heap *heap)
{
    free(heap->slots);
    heap->slots = NULL;
    heap->used = heap->room = heap->owners = 0;
}
