#include "flow.h"

#include <stdlib.h>

#include "flow_table.h"

static void plain_init(struct plain *p, struct flow *f)
{
    p->source = (struct source){SOURCE_PLAIN, -1};
    p->flow = f;
}

/* With everything that its end will need: no end fails for want of memory. */
static struct flow *flow_alloc(struct worker *w)
{
    if (!timer_reserve(&w->timers))
        return NULL;
    struct flow *f = calloc(1, sizeof *f);
    if (f && (f->slot = slot_take(w, f)))
        return f;
    free(f);
    timer_release(&w->timers);
    return NULL;
}

struct flow *flow_new(struct worker *w, unsigned kind, uint32_t tag)
{
    struct engine *e = w->engine;
    if (atomic_load_explicit(&e->n_flows, memory_order_relaxed) >= e->config.max_flows) {
        COUNT(w, shed_flows);
        return NULL;
    }
    struct flow *f = flow_alloc(w);
    if (!f) {
        COUNT(w, shed_memory);
        return NULL;
    }
    f->worker = w;
    f->token = atomic_load_explicit(&f->slot->token, memory_order_relaxed);
    f->kind = (uint8_t)kind;
    f->tag = tag;
    f->born = w->now;
    f->timer.kind = TIMER_FLOW;
    plain_init(&f->client, f);
    plain_init(&f->onward, f);
    list_init(&f->queue);
    list_append(&w->flows, &f->link);
    atomic_fetch_add(&e->n_flows, 1);
    atomic_fetch_add_explicit(&w->load, 1, memory_order_relaxed);
    COUNT(w, flows_opened);
    flow_set_timer(f, e->config.decision_timeout);
    return f;
}
