/* The ways of the pool, one entry each: who goes it and who waits for it. What to do about them: pool.h. */
#ifndef HBONE_POOL_ENTRY_H
#define HBONE_POOL_ENTRY_H

#include "state.h"

enum { POOL_IDS_LEFT = 1000 }; /* stream ids that a tunnel is never asked for */

/* The entry for a route's way; NULL without memory. */
struct pool_entry *pool_entry_for(struct worker *w, const struct route *r);
void pool_entry_free(struct pool_entry *entry);
/* The entry may be able to serve a waiting flow, or need a dial, or be over. NULL is allowed. */
void pool_due(struct pool_entry *entry);

/* A flow waits, or waits no more. */
void pool_join(struct flow *f, struct pool_entry *entry);
void pool_take(struct flow *f);
/* A waiting flow ends. */
void pool_leave(struct flow *f);
/* True when a waiting flow waits although tunnels are open. */
bool pool_full(const struct flow *f);

/* The peer's SETTINGS came, first or again. */
void pool_tunnel_greeted(struct tunnel *t);
/* The tunnel takes no more streams, for good; it no longer knows its entry. */
void pool_tunnel_gone(struct tunnel *t);
/* The tunnel has no stream ids left. */
bool pool_spent(const struct tunnel *t);

#endif
