#include "verdict.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "counted.h"
#include "template.h"

/* ---- one verdict */

void verdict_unref(struct verdict *v)
{
    if (!v || atomic_fetch_sub(&v->references, 1) != 1)
        return;
    route_free(v->route);
    free(v->varying);
    free(v);
}

static uint64_t hash_of(const uint8_t *bytes, size_t size)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
    return hash ^ hash >> 29;
}

struct verdict *verdict_new(const struct verdict_key *k, uint64_t number)
{
    struct verdict *v = calloc(1, sizeof *v + k->size);
    if (!v)
        return NULL;
    atomic_init(&v->references, 1);
    v->number = number;
    v->key_size = k->size;
    v->hash = hash_of(k->bytes, k->size);
    memcpy(v->key, k->bytes, k->size);
    return v;
}

struct route *verdict_route(const struct verdict *v, struct worker *w, const struct address *client)
{
    const struct route *kept = v->route;
    uint8_t block[BLOCK_LARGEST];
    size_t size = kept->block_size;
    memcpy(block, route_block(kept), size);
    if (!template_encode(block, &size, sizeof block, v->varying, v->n_varying, client, &w->random))
        return NULL;
    struct route *r = route_new(&kept->destination, kept->sans_size + size);
    if (!r)
        return NULL;
    r->netns = netns_ref(kept->netns);
    r->identity = identity_ref(kept->identity);
    r->mark = kept->mark;
    r->netns_gone = kept->netns_gone;
    r->n_sans = kept->n_sans;
    r->sans_size = kept->sans_size;
    r->block_size = size;
    memcpy(r->bytes, kept->bytes, kept->sans_size);
    memcpy(r->bytes + r->sans_size, block, size);
    return r;
}

/* ---- the table */

void verdicts_init(struct verdicts *v)
{
    pthread_mutex_init(&v->lock, NULL);
}

static struct verdict **place(struct verdicts *all, uint64_t hash)
{
    return &all->buckets[hash % VERDICT_BUCKETS];
}

static struct verdict *find(struct verdicts *all, uint64_t hash, const uint8_t *key, size_t size)
{
    struct verdict *v = *place(all, hash);
    while (v && !(v->hash == hash && v->key_size == size && memcmp(v->key, key, size) == 0))
        v = v->chain;
    return v;
}

struct verdict *verdict_find(struct worker *w, const struct verdict_key *k)
{
    struct verdicts *all = &w->engine->verdicts;
    struct verdict *v = NULL;
    if (k->size && atomic_load_explicit(&all->n, memory_order_relaxed)) {
        uint64_t hash = hash_of(k->bytes, k->size);
        pthread_mutex_lock(&all->lock);
        v = find(all, hash, k->bytes, k->size);
        if (v)
            atomic_fetch_add(&v->references, 1);
        pthread_mutex_unlock(&all->lock);
    }
    if (v)
        COUNT(w, verdict_hits);
    else
        COUNT(w, verdict_misses);
    return v;
}

int verdict_put(struct engine *e, struct verdict *v, uint64_t epoch)
{
    struct verdicts *all = &e->verdicts;
    struct verdict *old = NULL;
    int error = 0;
    pthread_mutex_lock(&all->lock);
    if (epoch != all->epoch)
        error = ESTALE;
    else if ((old = find(all, v->hash, v->key, v->key_size)))
        error = EEXIST;
    else if (all->n >= e->config.max_verdicts)
        error = ENOSPC;
    if (!error) {
        v->chain = *place(all, v->hash);
        *place(all, v->hash) = v;
        atomic_fetch_add(&all->n, 1);
    }
    pthread_mutex_unlock(&all->lock);
    return error;
}

/* ---- epochs */

uint64_t engine_epoch(struct engine *e)
{
    pthread_mutex_lock(&e->verdicts.lock);
    uint64_t epoch = e->verdicts.epoch;
    pthread_mutex_unlock(&e->verdicts.lock);
    return epoch;
}

static void free_all(struct verdict **buckets)
{
    for (size_t i = 0; i < VERDICT_BUCKETS; i++) {
        while (buckets[i]) {
            struct verdict *v = buckets[i];
            buckets[i] = v->chain;
            verdict_unref(v);
        }
    }
}

/* After it every worker says that it gives no verdict of the epochs before any more. */
static void ask_workers(struct engine *e, uint64_t ended)
{
    for (unsigned i = 0; i < e->n_workers; i++) {
        struct command *c = command_new(COMMAND_FORGOTTEN);
        if (!c)
            return; /* the next time says the same of this one */
        c->token = ended;
        mailbox_post(&e->workers[i], c, true);
    }
}

uint64_t engine_forget(struct engine *e)
{
    struct verdicts *all = &e->verdicts;
    struct verdict *old[VERDICT_BUCKETS];
    pthread_mutex_lock(&all->lock);
    uint64_t epoch = ++all->epoch;
    bool any = atomic_load(&all->n) > 0;
    if (any) {
        memcpy(old, all->buckets, sizeof old);
        memset(all->buckets, 0, sizeof all->buckets);
        atomic_store(&all->n, 0);
        all->forgotten++;
    }
    pthread_mutex_unlock(&all->lock);
    if (any) {
        ask_workers(e, epoch - 1);
        free_all(old);
    }
    return epoch;
}

void verdicts_free(struct verdicts *v)
{
    free_all(v->buckets);
    pthread_mutex_destroy(&v->lock);
}
