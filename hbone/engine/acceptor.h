/* Listening sockets. Every worker accepts; a worker with more to do than the others hands over. */
#ifndef HBONE_ACCEPTOR_H
#define HBONE_ACCEPTOR_H

#include "state.h"

/* Takes the acceptor over. */
void acceptor_add(struct worker *w, struct acceptor *a);
void acceptor_remove_closed(struct worker *w);
void acceptor_remove_tag(struct worker *w, uint32_t tag, bool every_tag);
void acceptor_on_event(struct acceptor *a);
/* Goes on after a pause (descriptors were short, or the owner did not take its events). */
void acceptor_resume(struct worker *w);
/* A connection that another worker accepted for us. */
void acceptor_adopt(struct worker *w, int fd, const struct listener *l, const struct address *peer);

#endif
