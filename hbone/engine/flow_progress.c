#include "flow_progress.h"

#include "flow.h"
#include "stream.h"

static bool reader_stalls(const struct flow *f)
{
    return f->client.out.size || f->onward.out.size || f->starved;
}

static bool half_closed(const struct flow *f)
{
    return f->client.got_end || f->onward.got_end || stream_got_end(&f->stream);
}

static uint64_t bytes_moved(const struct flow *f)
{
    return stat_get(&f->slot->from_client) + stat_get(&f->slot->to_client);
}

void flow_watch_progress(struct flow *f)
{
    const struct engine_config *config = &f->worker->engine->config;
    if (f->state != FLOW_RELAYING || f->timer.index)
        return;
    f->moved = bytes_moved(f);
    if (reader_stalls(f))
        flow_set_timer(f, config->stall_timeout);
    else if (half_closed(f))
        flow_set_timer(f, config->half_close_timeout);
}

enum reason flow_check_progress(struct flow *f)
{
    if (bytes_moved(f) != f->moved)
        flow_watch_progress(f);
    else if (reader_stalls(f))
        return REASON_stalled;
    else if (half_closed(f))
        return REASON_half_close_timeout;
    return REASON_ok;
}
