#include "pool_entry.h"

#include <stdlib.h>
#include <string.h>

#include "counted.h"
#include "wire.h"

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

struct pool_entry *pool_entry_for(struct worker *w, const struct route *r)
{
    uint64_t hash = route_hash(r);
    struct pool_entry *entry = w->pool[hash % POOL_BUCKETS];
    while (entry && !(entry->hash == hash && same_way(entry->key, r)))
        entry = entry->chain;
    return entry ? entry : entry_new(w, r, hash);
}

void pool_entry_free(struct pool_entry *entry)
{
    struct pool_entry **p = &entry->worker->pool[entry->hash % POOL_BUCKETS];
    while (*p != entry)
        p = &(*p)->chain;
    *p = entry->chain;
    list_remove(&entry->due);
    route_free(entry->key);
    free(entry);
}

void pool_due(struct pool_entry *entry)
{
    if (entry && !list_linked(&entry->due))
        list_append(&entry->worker->due_pools, &entry->due);
}

/* ---- flows */

void pool_join(struct flow *f, struct pool_entry *entry)
{
    f->entry = entry;
    entry->n_waiting++;
    list_remove(&f->queue); /* its client may have sent something: that can wait */
    list_append(&entry->waiting, &f->queue);
}

void pool_take(struct flow *f)
{
    list_remove(&f->queue);
    f->entry->n_waiting--;
    f->entry = NULL;
}

void pool_leave(struct flow *f)
{
    pool_due(f->entry);
    pool_take(f);
}

bool pool_full(const struct flow *f)
{
    const struct link *node = f->entry->tunnels.next;
    for (; node != &f->entry->tunnels; node = node->next)
        if (container_of(node, struct tunnel, pooled)->state == TUNNEL_OPEN)
            return true;
    return false;
}

/* ---- tunnels */

void pool_tunnel_greeted(struct tunnel *t)
{
    if (!t->entry)
        return;
    t->entry->greeted = true;
    t->entry->peer_streams = t->peer_streams;
    pool_due(t->entry);
}

void pool_tunnel_gone(struct tunnel *t)
{
    struct pool_entry *entry = t->entry;
    list_remove(&t->pooled);
    entry->n_tunnels--;
    t->entry = NULL;
    pool_due(entry);
}

bool pool_spent(const struct tunnel *t)
{
    return t->next_id >= STREAM_ID_LARGEST - POOL_IDS_LEFT;
}
