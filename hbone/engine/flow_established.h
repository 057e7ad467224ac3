/* The moment from which bytes pass. */
#ifndef HBONE_FLOW_ESTABLISHED_H
#define HBONE_FLOW_ESTABLISHED_H

#include "state.h"

/* Both legs are up. `headers` are those of the peer's answer, or NULL. */
void flow_established(struct flow *f, const struct header_list *headers);
/* The onward socket stands: answers the stream and lets waiting bytes out. `headers` of the far answer, or NULL. */
void flow_onward_connected(struct flow *f, const struct header_list *headers);

#endif
