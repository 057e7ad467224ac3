#include "pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "dial.h"
#include "flow.h"
#include "stream.h"
#include "transition.h"
#include "tunnel.h"

/* Before the peer's SETTINGS say how many streams it takes, no more than this. */
enum { STREAMS_UNGREETED = 8 };

/* ---- entries */

static uint64_t mix(uint64_t hash, const void *bytes, size_t size)
{
    const uint8_t *p = bytes;
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ p[i]) * UINT64_C(0x100000001b3);
    return hash;
}

static uint64_t route_hash(const struct route *r)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    hash = mix(hash, r->destination.ip, sizeof r->destination.ip);
    hash = mix(hash, &r->destination.port, sizeof r->destination.port);
    hash = mix(hash, &r->netns, sizeof r->netns);
    hash = mix(hash, &r->identity, sizeof r->identity);
    return mix(hash, r->bytes, r->sans_size);
}

static bool same_way(const struct route *a, const struct route *b)
{
    return address_equal(&a->destination, &b->destination) && a->netns == b->netns && a->identity == b->identity &&
           a->mark == b->mark && a->n_sans == b->n_sans && a->sans_size == b->sans_size &&
           memcmp(a->bytes, b->bytes, a->sans_size) == 0;
}

static struct route *copy_key(const struct route *r)
{
    struct route *key = route_new(&r->destination, r->sans_size);
    if (!key)
        return NULL;
    key->netns = netns_ref(r->netns);
    key->identity = identity_ref(r->identity);
    key->mark = r->mark;
    key->n_sans = r->n_sans;
    key->sans_size = r->sans_size;
    memcpy(key->bytes, r->bytes, r->sans_size);
    return key;
}

static struct pool_entry *entry_new(struct worker *w, const struct route *r, uint64_t hash)
{
    struct pool_entry *entry = calloc(1, sizeof *entry);
    if (!entry || !(entry->key = copy_key(r))) {
        free(entry);
        return NULL;
    }
    entry->worker = w;
    entry->hash = hash;
    list_init(&entry->tunnels);
    list_init(&entry->waiting);
    list_init(&entry->due);
    entry->chain = w->pool[hash % POOL_BUCKETS];
    w->pool[hash % POOL_BUCKETS] = entry;
    return entry;
}

static struct pool_entry *entry_for(struct worker *w, const struct route *r)
{
    uint64_t hash = route_hash(r);
    struct pool_entry *entry = w->pool[hash % POOL_BUCKETS];
    while (entry && !(entry->hash == hash && same_way(entry->key, r)))
        entry = entry->chain;
    return entry ? entry : entry_new(w, r, hash);
}

static void entry_free(struct pool_entry *entry)
{
    struct pool_entry **p = &entry->worker->pool[entry->hash % POOL_BUCKETS];
    while (*p != entry)
        p = &(*p)->chain;
    *p = entry->chain;
    list_remove(&entry->due);
    route_free(entry->key);
    free(entry);
}

/* ---- flows */

static void enqueue(struct flow *f, struct pool_entry *entry)
{
    const struct engine_config *c = &f->worker->engine->config;
    if (!flow_move(f, FLOW_POOLED))
        return;
    f->entry = entry;
    entry->n_waiting++;
    list_remove(&f->queue); /* its client may have sent something: that can wait */
    list_append(&entry->waiting, &f->queue);
    flow_set_timer(f, c->connect_timeout + c->handshake_timeout);
    pool_due(entry);
}

void pool_submit(struct flow *f)
{
    struct pool_entry *entry = entry_for(f->worker, f->route);
    if (entry)
        enqueue(f, entry);
    else
        flow_out_of_memory(f);
}

void pool_retry(struct flow *f)
{
    COUNT(f->worker, pool_retries);
    f->retries++;
    stream_detach(f);
    if (flow_alive(f))
        pool_submit(f);
}

static void dequeue(struct flow *f)
{
    list_remove(&f->queue);
    f->entry->n_waiting--;
    f->entry = NULL;
}

void pool_leave(struct flow *f)
{
    pool_due(f->entry);
    dequeue(f);
}

bool pool_full(const struct flow *f)
{
    const struct link *node = f->entry->tunnels.next;
    for (; node != &f->entry->tunnels; node = node->next)
        if (container_of(node, struct tunnel, pooled)->state == TUNNEL_OPEN)
            return true;
    return false;
}

/* ---- balance */

static uint32_t stream_limit(const struct tunnel *t)
{
    uint32_t limit = (uint32_t)t->worker->engine->config.pool_streams;
    uint32_t told = t->greeted          ? t->peer_streams
                    : t->entry->greeted ? t->entry->peer_streams
                                        : STREAMS_UNGREETED;
    return limit < told ? limit : told;
}

bool pool_spent(const struct tunnel *t)
{
    return t->next_id >= STREAM_ID_LARGEST - POOL_IDS_LEFT;
}

static bool has_room(const struct tunnel *t)
{
    return t->state == TUNNEL_OPEN && !tunnel_suspect(t) && t->n_streams < stream_limit(t) && !pool_spent(t);
}

static struct tunnel *tunnel_with_room(struct pool_entry *entry)
{
    for (struct link *node = entry->tunnels.next; node != &entry->tunnels; node = node->next) {
        struct tunnel *t = container_of(node, struct tunnel, pooled);
        if (has_room(t))
            return t;
    }
    return NULL;
}

/* Streams that tunnels will take which are not ready for them yet. */
static unsigned promised(const struct pool_entry *entry)
{
    unsigned n = 0;
    for (struct link *node = entry->tunnels.next; node != &entry->tunnels; node = node->next) {
        const struct tunnel *t = container_of(node, struct tunnel, pooled);
        unsigned most = entry->greeted ? stream_limit(t) : (unsigned)t->worker->engine->config.pool_streams;
        if (tunnel_alive(t) && !t->greeted && t->n_streams < most)
            n += most - t->n_streams;
    }
    return n;
}

/* The next look at a flow that waits for its answer. */
static void watch_answer(struct flow *f)
{
    const struct engine_config *c = &f->worker->engine->config;
    uint64_t waited = f->worker->now - f->asked, left = c->response_timeout - waited;
    flow_set_timer(f, left < c->answer_patience ? left : c->answer_patience);
}

/* Nothing of the flow was relayed yet. What the peer may still make of the request ends with its stream. */
static void ask_elsewhere(struct flow *f)
{
    if (tunnel_reset_stream(f->stream.tunnel, f->stream.id, H2_CANCEL) && f->state == FLOW_ASKED)
        pool_retry(f);
}

void pool_unanswered(struct flow *f)
{
    const struct engine_config *c = &f->worker->engine->config;
    struct tunnel *t = f->stream.tunnel;
    uint64_t waited = f->worker->now - f->asked;
    bool silent = t->heard <= f->asked;
    if (waited >= c->response_timeout) {
        flow_abort(f, REASON_connect_timeout, ETIMEDOUT, H2_CANCEL);
        return;
    }
    bool leaving = t->goaway_got && waited >= 2 * c->answer_patience; /* some take the request and forget it */
    if (t->greeted && (leaving || (silent && tunnel_suspect(t))) && f->retries < POOL_RETRIES) {
        ask_elsewhere(f);
        return;
    }
    if (t->greeted && silent)
        tunnel_probe(t);
    if (f->state == FLOW_ASKED)
        watch_answer(f);
}

static void open_stream(struct flow *f, struct tunnel *t)
{
    const struct route *r = f->route;
    dequeue(f);
    if (!flow_move(f, FLOW_ASKED) || !stream_attach(f, t, t->next_id))
        return;
    t->next_id += 2;
    list_remove(&t->pooled); /* most recently used first: the others may fall idle */
    list_prepend(&t->entry->tunnels, &t->pooled);
    f->asked = f->worker->now;
    watch_answer(f);
    tunnel_headers(t, f->stream.id, route_block(r), r->block_size, false);
}

/* Those whom no other tunnel is about to serve, last come first. Dialling again and again for them would
 * only hammer a peer that does not answer. */
static void fail_unserved(struct pool_entry *entry, enum reason reason, int error)
{
    while (entry->n_waiting > promised(entry))
        flow_abort(container_of(entry->waiting.prev, struct flow, queue), reason, error, H2_CANCEL);
}

/* Dials until those who wait are provided for. */
static void dial_for(struct pool_entry *entry)
{
    const struct engine_config *c = &entry->worker->engine->config;
    if (entry->greeted && !entry->peer_streams) { /* it takes no streams at all: more tunnels do not help */
        fail_unserved(entry, REASON_stream_limit, 0);
        return;
    }
    while (entry->n_waiting > promised(entry) && entry->n_tunnels < c->pool_tunnels) {
        int error = 0;
        struct tunnel *t = tunnel_dial(entry, &error);
        if (!t) {
            fail_unserved(entry, connect_reason(-error), -error);
            return;
        }
        list_append(&entry->tunnels, &t->pooled);
        entry->n_tunnels++;
    }
}

static void balance(struct pool_entry *entry)
{
    struct tunnel *t;
    while (!list_empty(&entry->waiting) && (t = tunnel_with_room(entry))) {
        if (t->greeted)
            COUNT(entry->worker, pool_hits);
        open_stream(container_of(entry->waiting.next, struct flow, queue), t);
    }
    dial_for(entry);
}

void pool_tunnel_greeted(struct tunnel *t)
{
    if (!t->entry)
        return;
    t->entry->greeted = true;
    t->entry->peer_streams = t->peer_streams;
    pool_due(t->entry);
}

void pool_due(struct pool_entry *entry)
{
    if (entry && !list_linked(&entry->due))
        list_append(&entry->worker->due_pools, &entry->due);
}

/* An identity that was replaced and a namespace that was removed get no new streams: their tunnels go with
 * their last one. */
static bool is_over(const struct route *key)
{
    return atomic_load_explicit(&key->identity->replaced, memory_order_relaxed) ||
           (key->netns && atomic_load_explicit(&key->netns->removed, memory_order_relaxed));
}

static void retire_idle(struct pool_entry *entry)
{
    struct link *next;
    if (entry->n_waiting || !is_over(entry->key))
        return;
    for (struct link *node = entry->tunnels.next; node != &entry->tunnels; node = next) {
        struct tunnel *t = container_of(node, struct tunnel, pooled);
        next = node->next;
        if (t->state != TUNNEL_OPEN || t->n_streams)
            continue;
        COUNT(entry->worker, pool_retired);
        tunnel_finish(t);
    }
}

void pool_retire(struct worker *w)
{
    for (int i = 0; i < POOL_BUCKETS; i++)
        for (struct pool_entry *entry = w->pool[i]; entry; entry = entry->chain)
            pool_due(entry);
}

void pool_balance_due(struct worker *w)
{
    struct link *node;
    while ((node = list_pop(&w->due_pools))) {
        struct pool_entry *entry = container_of(node, struct pool_entry, due);
        balance(entry);
        retire_idle(entry);
        if (!entry->n_tunnels && !entry->n_waiting)
            entry_free(entry);
    }
}

/* ---- tunnels that go */

void pool_tunnel_gone(struct tunnel *t)
{
    struct pool_entry *entry = t->entry;
    list_remove(&t->pooled);
    entry->n_tunnels--;
    t->entry = NULL;
    pool_due(entry);
}

void pool_tunnel_lost(struct pool_entry *entry, enum reason reason, int error)
{
    if (reason != REASON_ok)
        fail_unserved(entry, reason, error);
    pool_due(entry);
}

void pool_free(struct worker *w)
{
    for (int i = 0; i < POOL_BUCKETS; i++)
        while (w->pool[i])
            entry_free(w->pool[i]);
}
