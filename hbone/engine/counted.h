/* What threads share and count: namespaces, listeners and each worker's share in one, the routes of commands. */
#ifndef HBONE_COUNTED_H
#define HBONE_COUNTED_H

#include "state.h"

struct listener *listener_ref(struct listener *l);
void listener_unref(struct listener *l);
struct netns *netns_ref(struct netns *n);
void netns_unref(struct netns *n);

/* Made by the owner's thread, so that no worker lacks memory for one. NULL without memory. */
struct acceptor *acceptor_new(struct listener *l); /* takes a reference */
void acceptor_free(struct acceptor *a); /* NULL is allowed */

/* With room for so many bytes; NULL without memory. */
struct route *route_new(const struct address *destination, size_t bytes);
void route_free(struct route *r);
static inline const uint8_t *route_block(const struct route *r)
{
    return (const uint8_t *)r->bytes + r->sans_size;
}

#endif
