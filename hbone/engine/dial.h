/* Onward sockets: opened inside a network namespace, perhaps with the client's source address. */
#ifndef HBONE_DIAL_H
#define HBONE_DIAL_H

#include "state.h"

/* Begins a non-blocking connect. The socket, or -errno. `netns` NULL: the worker's own; `source` NULL or
 * AF_UNSPEC: chosen by the kernel. */
int dial(struct worker *w, const struct address *destination, struct netns *netns, const struct address *source,
         uint32_t mark);
/* Goes home; the second one if the thread is in a namespace that was removed: a thread keeps it alive. */
void dial_leave(struct worker *w);
void dial_leave_removed(struct worker *w);

#endif
