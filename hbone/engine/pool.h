/* Client tunnels shared by flows that go the same way: same namespace, identity, destination and SANs.
 * Demand is queued per way; one dial serves everybody who waits. */
#ifndef HBONE_POOL_H
#define HBONE_POOL_H

#include "state.h"

enum {
    POOL_RETRIES = 2,     /* of one flow */
    POOL_IDS_LEFT = 1000, /* stream ids that a tunnel is never asked for */
};

/* Queues a flow whose route is set. */
void pool_submit(struct flow *f);
/* Takes a flow off its dead or leaving tunnel and queues it again. */
void pool_retry(struct flow *f);
/* A flow's CONNECT has no answer yet, and its patience is over: see to the tunnel, or try another one. */
void pool_unanswered(struct flow *f);
/* A waiting flow ends. */
void pool_leave(struct flow *f);
/* The tunnel has no stream ids left. */
bool pool_spent(const struct tunnel *t);
/* True when a waiting flow waits although tunnels are open. */
bool pool_full(const struct flow *f);

/* The entry may be able to serve a waiting flow, or need a dial, or be over. NULL is allowed. */
void pool_due(struct pool_entry *entry);
void pool_balance_due(struct worker *w);
/* An identity was replaced or a namespace removed: tunnels of theirs end as soon as they carry nothing. */
void pool_retire(struct worker *w);

/* The peer's SETTINGS came, first or again. */
void pool_tunnel_greeted(struct tunnel *t);
/* The tunnel takes no more streams, for good; it no longer knows its entry. */
void pool_tunnel_gone(struct tunnel *t);
/* After a tunnel went: with a reason other than ok it never worked, which those who wait must hear. */
void pool_tunnel_lost(struct pool_entry *entry, enum reason reason, int error);

void pool_free(struct worker *w);

#endif
