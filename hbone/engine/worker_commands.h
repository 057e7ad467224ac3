/* What the owner, and other workers, ask of a worker. */
#ifndef HBONE_WORKER_COMMANDS_H
#define HBONE_WORKER_COMMANDS_H

#include "state.h"

/* Empties the mailbox. */
void worker_commands(struct worker *w);
/* Accepts no more by the tag, or by none; tunnels that came in by it leave in order. */
void worker_drain(struct worker *w, uint32_t tag, bool every_tag);

#endif
