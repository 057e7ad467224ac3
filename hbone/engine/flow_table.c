#include "flow_table.h"

#include <stdlib.h>

enum { SLOT_BITS = 24, WORKER_BITS = 8 };
#define GENERATION_MASK 0x7fffffffu

static uint64_t make_token(const struct worker *w, const struct slot *s)
{
    return (uint64_t)s->generation << 32 | (uint64_t)w->index << SLOT_BITS | s->index;
}

unsigned token_worker(uint64_t token)
{
    return (unsigned)(token >> SLOT_BITS) & ((1u << WORKER_BITS) - 1);
}

static struct slot *slot_at(struct flow_table *t, uint32_t index)
{
    struct slot *page = index / SLOTS_PER_PAGE < SLOT_PAGES
                            ? atomic_load_explicit(&t->pages[index / SLOTS_PER_PAGE], memory_order_acquire)
                            : NULL;
    return page ? &page[index % SLOTS_PER_PAGE] : NULL;
}

static struct slot *slot_fresh(struct flow_table *t)
{
    uint32_t index = atomic_load_explicit(&t->used, memory_order_relaxed);
    if (index / SLOTS_PER_PAGE >= SLOT_PAGES)
        return NULL;
    if (index % SLOTS_PER_PAGE == 0) {
        struct slot *page = calloc(SLOTS_PER_PAGE, sizeof *page);
        if (!page)
            return NULL;
        atomic_store_explicit(&t->pages[index / SLOTS_PER_PAGE], page, memory_order_release);
    }
    struct slot *s = slot_at(t, index);
    s->index = index;
    atomic_store_explicit(&t->used, index + 1, memory_order_release);
    return s;
}

struct slot *slot_take(struct worker *w, struct flow *f)
{
    struct flow_table *t = &w->table;
    struct slot *s = t->free;
    if (s)
        t->free = s->next_free;
    else if (!(s = slot_fresh(t)))
        return NULL;
    s->flow = f;
    s->generation = (s->generation + 1) & GENERATION_MASK;
    if (!s->generation)
        s->generation = 1;
    atomic_store_explicit(&s->from_client, 0, memory_order_relaxed);
    atomic_store_explicit(&s->to_client, 0, memory_order_relaxed);
    atomic_store_explicit(&s->token, make_token(w, s), memory_order_release);
    return s;
}

void slot_release(struct worker *w, struct slot *s)
{
    atomic_store_explicit(&s->token, 0, memory_order_release);
    s->flow = NULL;
    s->next_free = w->table.free;
    w->table.free = s;
}

struct flow *flow_by_token(struct worker *w, uint64_t token)
{
    uint32_t index = (uint32_t)token & ((1u << SLOT_BITS) - 1);
    struct slot *s = index < atomic_load_explicit(&w->table.used, memory_order_relaxed) ? slot_at(&w->table, index) : NULL;
    if (!s || !token || atomic_load_explicit(&s->token, memory_order_relaxed) != token)
        return NULL;
    return s->flow;
}

/* A slot may be released and taken again while it is read; then its token differs before and after. */
static bool slot_read(struct slot *s, struct engine_counter *c)
{
    c->token = atomic_load_explicit(&s->token, memory_order_acquire);
    if (!c->token)
        return false;
    c->from_client = atomic_load_explicit(&s->from_client, memory_order_relaxed);
    c->to_client = atomic_load_explicit(&s->to_client, memory_order_relaxed);
    atomic_thread_fence(memory_order_acquire);
    if (atomic_load_explicit(&s->token, memory_order_relaxed) != c->token)
        return false;
    uint64_t moved = c->from_client + c->to_client;
    if (s->seen_token != c->token) {
        s->seen_token = c->token;
        s->seen = 0;
    }
    if (moved == s->seen)
        return false;
    s->seen = moved;
    return true;
}

size_t flow_table_counters(struct flow_table *t, struct engine_counter *out, size_t room)
{
    uint32_t used = atomic_load_explicit(&t->used, memory_order_acquire);
    size_t n = 0;
    for (uint32_t i = 0; i < used && n < room; i++)
        if (slot_read(slot_at(t, i), &out[n]))
            n++;
    return n;
}

void flow_table_free(struct flow_table *t)
{
    for (size_t i = 0; i < SLOT_PAGES; i++)
        free(atomic_load_explicit(&t->pages[i], memory_order_relaxed));
}
