#include "counted.h"

#include <stdlib.h>
#include <unistd.h>

struct listener *listener_ref(struct listener *l)
{
    if (l)
        atomic_fetch_add(&l->references, 1);
    return l;
}

void listener_unref(struct listener *l)
{
    if (!l || atomic_fetch_sub(&l->references, 1) != 1)
        return;
    close(l->fd);
    netns_unref(l->netns);
    free(l);
}

struct netns *netns_ref(struct netns *n)
{
    if (n)
        atomic_fetch_add(&n->references, 1);
    return n;
}

void netns_unref(struct netns *n)
{
    if (!n || atomic_fetch_sub(&n->references, 1) != 1)
        return;
    close(n->fd);
    free(n);
}

struct acceptor *acceptor_new(struct listener *l)
{
    struct acceptor *a = calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->source = (struct source){SOURCE_ACCEPTOR, l->fd};
    a->listener = listener_ref(l);
    return a;
}

void acceptor_free(struct acceptor *a)
{
    if (a)
        listener_unref(a->listener);
    free(a);
}

struct route *route_new(const struct address *destination, size_t bytes)
{
    struct route *r = calloc(1, sizeof *r + bytes);
    if (r)
        r->destination = *destination;
    return r;
}

void route_free(struct route *r)
{
    if (!r)
        return;
    netns_unref(r->netns);
    identity_unref(r->identity);
    free(r);
}
