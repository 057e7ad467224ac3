/* Whether a relaying flow still moves. */
#ifndef HBONE_FLOW_PROGRESS_H
#define HBONE_FLOW_PROGRESS_H

#include "state.h"

/* Arms the progress check of a relaying flow: half-closed, or a reader that takes nothing. */
void flow_watch_progress(struct flow *f);
/* What the check finds: the reason to end the flow, or REASON_ok; then the next check is armed where there is need. */
enum reason flow_check_progress(struct flow *f);

#endif
