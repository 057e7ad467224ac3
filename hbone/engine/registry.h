/* What the owner has registered: namespaces, listeners, identities. Shared by all threads, under the
 * engine's lock; what is found is counted, so that it outlives its registration while it is in use. */
#ifndef HBONE_REGISTRY_H
#define HBONE_REGISTRY_H

#include "state.h"

/* References; NULL when there is none (any more). */
struct netns *registry_netns(struct engine *e, int handle);
struct identity *registry_identity(struct engine *e, uint32_t id);
/* Forgets everything; the lock is held. */
void registry_drop(struct engine *e);

#endif
