#include "h2_error.h"

#include "flow_end.h"
#include "stream.h"
#include "tunnel.h"

bool h2_error(struct tunnel *t, uint32_t code, const char *detail)
{
    tunnel_fail(t, REASON_peer_protocol, (int)code, detail);
    return false;
}

bool h2_glitch(struct tunnel *t, const char *detail)
{
    if (bucket_pour(&t->budgets.glitches, LIMIT_GLITCHES, 1, t->worker->now))
        return true;
    return tunnel_abused(t, &t->worker->stats.abuse_glitches, detail);
}

bool h2_idle(const struct tunnel *t, uint32_t stream)
{
    return stream % 2 == 0 || stream >= t->next_id;
}

bool h2_stream_error(struct tunnel *t, uint32_t stream, uint32_t code)
{
    struct flow *f = stream_find(t, stream);
    if (++t->budgets.resets_provoked > RESETS_PROVOKED)
        return tunnel_abused(t, &t->worker->stats.abuse_resets_provoked, "too many streams had to be reset");
    if (!tunnel_reset_stream(t, stream, code))
        return false;
    if (f) {
        stream_detach(f);
        flow_drop(f, REASON_peer_protocol, 0);
    }
    return tunnel_alive(t);
}
