/* Which of a tunnel's deadlines comes next. Each has one timer, set to the earliest. */
#include "tunnel.h"

static void earlier(uint64_t *when, uint64_t deadline)
{
    if (deadline && deadline < *when)
        *when = deadline;
}

void tunnel_rearm(struct tunnel *t)
{
    const struct engine_config *c = &t->worker->engine->config;
    uint64_t when = t->defective ? t->worker->now : UINT64_MAX;
    earlier(&when, t->phase_deadline);
    if (t->state == TUNNEL_OPEN) {
        earlier(&when, t->settings_deadline);
        earlier(&when, t->drain_deadline);
        earlier(&when, t->expiry_check);
        earlier(&when, t->ping_sent ? t->ping_sent + c->ping_timeout : t->ping_due);
        if (t->client && !t->n_streams)
            earlier(&when, t->idle_since + c->pool_idle_timeout);
    }
    if (when != UINT64_MAX)
        timer_set(&t->worker->timers, &t->timer, when);
}
