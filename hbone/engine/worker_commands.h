/* What the owner, and other workers, ask of a worker. */
#ifndef HBONE_WORKER_COMMANDS_H
#define HBONE_WORKER_COMMANDS_H

#include "state.h"

/* Empties the mailbox. */
void worker_commands(struct worker *w);

#endif
