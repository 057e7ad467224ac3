#include "flow_time.h"

#include <errno.h>

#include "flow_end.h"
#include "flow_progress.h"
#include "pool.h"
#include "pool_entry.h"
#include "wire.h"

static void check_progress(struct flow *f)
{
    enum reason reason = flow_check_progress(f);
    if (reason == REASON_stalled)
        COUNT(f->worker, stalled_flows);
    if (reason != REASON_ok)
        flow_abort(f, reason, 0, H2_CANCEL);
}

void flow_on_timer(struct flow *f)
{
    if (f->doomed) {
        flow_abort(f, f->doomed, f->doomed_error, H2_CANCEL);
        return;
    }
    switch (f->state) {
    case FLOW_DECIDING:
        flow_abort(f, REASON_decision_timeout, 0, H2_CANCEL);
        break;
    case FLOW_ASKED:
        pool_unanswered(f);
        break;
    case FLOW_CONNECTING:
        flow_abort(f, REASON_connect_timeout, ETIMEDOUT, H2_CANCEL);
        break;
    case FLOW_POOLED:
        flow_abort(f, pool_full(f) ? REASON_stream_limit : REASON_connect_timeout, ETIMEDOUT, H2_CANCEL);
        break;
    case FLOW_RELAYING:
        check_progress(f);
        break;
    default:
        break;
    }
}
