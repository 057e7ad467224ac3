/* From a flow's arrival to its way: the owner's verdict, or one that is kept. */
#ifndef HBONE_FLOW_VERDICT_H
#define HBONE_FLOW_VERDICT_H

#include "command.h"
#include "state.h"
#include "verdict.h"

/* A captured connection was accepted. Takes the descriptor. */
void flow_accepted(struct worker *w, int fd, const struct listener *l, const struct address *peer);
/* Goes the way of a kept verdict, if there is one for the key; the flow may be over then. */
bool flow_by_kept_verdict(struct flow *f, const struct verdict_key *key, const struct address *client);

/* The owner's. */
void flow_connect_plain(struct flow *f, const struct command *c);
void flow_connect_tunnel(struct flow *f, struct command *c); /* takes c->route */
void flow_refuse(struct flow *f, unsigned reason, unsigned status);

#endif
