/* Client tunnels shared by flows that go the same way: same namespace, identity, destination and SANs.
 * Demand is queued per way (pool_entry.h); one dial serves everybody who waits. */
#ifndef HBONE_POOL_H
#define HBONE_POOL_H

#include "state.h"

enum { POOL_RETRIES = 2 }; /* of one flow */

/* Queues a flow whose route is set. */
void pool_submit(struct flow *f);
/* Takes a flow off its dead or leaving tunnel and queues it again. */
void pool_retry(struct flow *f);
/* A flow's CONNECT has no answer yet, and its patience is over: see to the tunnel, or try another one. */
void pool_unanswered(struct flow *f);

/* Serves those who wait, dials for them, and forgets entries that are over. */
void pool_balance_due(struct worker *w);
/* An identity was replaced or a namespace removed: tunnels of theirs end as soon as they carry nothing. */
void pool_retire(struct worker *w);

/* A tunnel has ended (worker.tunnel_ended): its streams end or are tried elsewhere. `entry` is where it was pooled. */
void pool_tunnel_ended(struct tunnel *t, struct pool_entry *entry, enum reason reason, int error);
/* GOAWAY came: streams of a client tunnel behind `last` were not processed. */
void pool_peer_leaves(struct tunnel *t, uint32_t last);

void pool_free(struct worker *w);

#endif
