/* Deadlines of tunnels: phases, SETTINGS, PING, drain, idle. */
#include <errno.h>
#include <time.h>

#include "tunnel.h"

static void phase_over(struct tunnel *t)
{
    switch (t->state) {
    case TUNNEL_CONNECTING:
        tunnel_socket_failed(t, ETIMEDOUT);
        break;
    case TUNNEL_HANDSHAKE:
        tunnel_fail(t, REASON_tls_handshake_timeout, SILENTLY, "the handshake took too long");
        break;
    case TUNNEL_OPEN:
        tunnel_fail(t, REASON_peer_protocol, H2_SETTINGS_TIMEOUT, "the peer sent no HTTP/2 preface in time");
        break;
    default:
        tunnel_fail(t, REASON_ok, SILENTLY, NULL);
    }
}

static void send_ping(struct tunnel *t)
{
    static const uint8_t opaque[8] = "ambient";
    struct worker *w = t->worker;
    t->ping_due = w->now + w->engine->config.ping_interval;
    t->ping_sent = w->now;
    COUNT(w, pings_sent);
    tunnel_frame(t, FRAME_PING, 0, 0, opaque, sizeof opaque);
}

static void keep_alive(struct tunnel *t)
{
    struct worker *w = t->worker;
    const struct engine_config *c = &w->engine->config;
    if (t->ping_sent && t->heard > t->ping_sent)
        t->ping_sent = 0; /* anything heard is a sign of life; the answer may wait behind bulk data */
    if (t->ping_sent && w->now >= t->ping_sent + c->ping_timeout) {
        tunnel_fail(t, REASON_peer_dead, H2_NO_ERROR, "the peer does not answer PING");
        return;
    }
    if (t->ping_sent || w->now < t->ping_due)
        return;
    send_ping(t);
}

void tunnel_probe(struct tunnel *t)
{
    if (!t->probed || t->heard > t->probed)
        t->probed = t->worker->now;
    if (t->ping_sent && t->heard <= t->ping_sent)
        return; /* one is on its way */
    send_ping(t);
    if (t->state == TUNNEL_OPEN)
        tunnel_rearm(t);
}

bool tunnel_suspect(const struct tunnel *t)
{
    const struct worker *w = t->worker;
    return t->probed && t->heard <= t->probed && w->now - t->probed >= w->engine->config.answer_patience;
}

/* Wall time may jump, so it is looked at again and again. */
static void check_expiry(struct tunnel *t)
{
    enum { LONGEST = 60 };
    int64_t left = peer_chain_expiry(t->peer_chain) + 1 - (int64_t)time(NULL);
    if (left > 0)
        t->expiry_check = t->worker->now + 1000 * (uint64_t)(left < LONGEST ? left : LONGEST);
    else
        tunnel_fail(t, REASON_peer_cert_expired, H2_NO_ERROR, "the peer's certificate has expired");
}

void tunnel_on_timer(struct tunnel *t)
{
    struct worker *w = t->worker;
    const struct engine_config *c = &w->engine->config;
    if (t->defective) {
        t->defective = false;
        tunnel_fail(t, REASON_internal, H2_INTERNAL_ERROR, "ended for a defect of this engine");
        return;
    }
    if (t->phase_deadline && w->now >= t->phase_deadline) {
        phase_over(t);
        return;
    }
    if (t->state == TUNNEL_OPEN) {
        if (t->settings_deadline && w->now >= t->settings_deadline)
            tunnel_fail(t, REASON_peer_protocol, H2_SETTINGS_TIMEOUT, "the peer never acknowledged SETTINGS");
        else if (t->drain_deadline && w->now >= t->drain_deadline)
            tunnel_drain_last(t);
        else if (t->expiry_check && w->now >= t->expiry_check)
            check_expiry(t);
        else if (t->client && !t->n_streams && w->now >= t->idle_since + c->pool_idle_timeout) {
            COUNT(w, pool_idle_released);
            tunnel_finish(t);
        } else
            keep_alive(t);
    }
    if (t->state != TUNNEL_DEAD)
        tunnel_rearm(t);
}
