/* A worker: one thread, one epoll, one round after another. */
#ifndef HBONE_WORKER_H
#define HBONE_WORKER_H

#include "state.h"

/* 0 or -errno. After a failure worker_free cleans up. */
int worker_init(struct worker *w, struct engine *e, unsigned index);
int worker_start(struct worker *w);
/* After the thread ended: descriptors, and everything but what counters are read from. */
void worker_close(struct worker *w);
void worker_free(struct worker *w);

#endif
