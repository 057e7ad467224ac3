/* How tunnels end: by failure, in order, or because either side leaves. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "counted.h"
#include "event.h"
#include "pool_entry.h"
#include "socket.h"
#include "transition.h"
#include "tunnel.h"

static void announce_failure(struct tunnel *t, enum reason reason, const char *detail)
{
    struct worker *w = t->worker;
    bool benign = reason == REASON_ok || reason == REASON_shutdown ||
                  (t->greeted && !t->n_streams &&
                   (reason == REASON_truncated || reason == REASON_peer_reset || reason == REASON_draining));
    if (benign)
        return;
    COUNT(w, tunnel_failures);
    if (!event_may_tell(w))
        return;
    struct engine_event *event = event_new(EVENT_TUNNEL_FAILED, &detail, 1, NULL, 0);
    if (!event)
        return;
    COUNT(w, tunnel_failures_reported);
    event->tag = t->tag;
    event->peer = t->peer;
    event->inbound = !t->client;
    event->reason = (uint16_t)reason;
    event_post(w, event);
}

void tunnel_handshake_over(struct tunnel *t)
{
    handshake_free(t->handshake);
    t->handshake = NULL;
    list_remove(&t->shaking);
    if (t->counted_handshake)
        atomic_fetch_sub(&t->worker->engine->n_handshakes, 1);
    t->counted_handshake = false;
}

static void tunnel_bury(struct tunnel *t)
{
    struct worker *w = t->worker;
    if (!tunnel_move(t, TUNNEL_DEAD))
        return;
    timer_clear(&w->timers, &t->timer);
    timer_release(&w->timers);
    list_remove(&t->link);
    list_remove(&t->again);
    list_remove(&t->dirty);
    list_append(&w->dead_tunnels, &t->link);
    tunnel_handshake_over(t);
    if (t->peer_closed || t->fin_sent)
        close(t->source.fd);
    else
        close_with_reset(t->source.fd);
    t->source.fd = -1;
    atomic_fetch_sub(&w->engine->n_tunnels, 1);
    if (!t->client)
        atomic_fetch_sub(&w->engine->n_sockets[LISTENER_HBONE], 1);
    atomic_fetch_sub_explicit(&w->load, 1, memory_order_relaxed);
    COUNT(w, tunnels_closed);
}

static void announce_close(struct tunnel *t, enum reason reason)
{
    if (!t->opened || !t->worker->engine->config.tunnel_events)
        return;
    struct engine_event *event = event_new(EVENT_TUNNEL_CLOSED, NULL, 0, NULL, 0);
    if (!event) {
        t->untold = (uint16_t)reason;
        return;
    }
    event->tunnel = t->id;
    event->reason = (uint16_t)reason;
    event_post(t->worker, event);
}

/* As with flows: where there was no memory for the event, the tunnel's becomes it. */
static void tell_late(struct tunnel *t)
{
    struct worker *w = t->worker;
    struct engine_event event = {.type = EVENT_TUNNEL_CLOSED, .tunnel = t->id, .reason = t->untold};
    _Static_assert(sizeof event <= sizeof *t, "an event fits into a tunnel");
    memcpy(t, &event, sizeof event);
    event_post(w, (struct engine_event *)t);
}

void tunnel_free(struct tunnel *t)
{
    struct buffers *b = &t->worker->buffers;
    chunk_put(b, t->partial);
    if (t->plain)
        block_put(b, t->plain);
    if (t->sealed_is_block)
        block_put(b, t->sealed);
    else
        free(t->sealed);
    free(t->first);
    record_keys_free(&t->sealing);
    record_keys_free(&t->opening);
    hpack_decoder_free(&t->hpack);
    identity_unref(t->identity);
    netns_unref(t->netns);
    free(t->in.body);
    free(t->block);
    handshake_free(t->ticketing);
    free(t->peer_identity);
    peer_chain_free(t->peer_chain);
    if (t->untold)
        tell_late(t);
    else
        free(t);
}

static uint32_t last_processed(const struct tunnel *t)
{
    if (t->client)
        return 0;
    if (t->drain == DRAIN_LAST)
        return t->last_id;
    return t->next_id > 1 ? t->next_id - 2 : 0;
}

static void say_goaway(struct tunnel *t, uint32_t last, uint32_t code)
{
    uint8_t body[8];
    put_u32(body, last);
    put_u32(body + 4, code);
    t->goaway_sent = true;
    tunnel_frame(t, FRAME_GOAWAY, 0, 0, body, sizeof body);
}

void tunnel_linger(struct tunnel *t)
{
    enum { ORDERLY = 60000 };
    const struct engine_config *c = &t->worker->engine->config;
    uint64_t patience = c->close_linger;
    if (t->in_order) /* a slow peer may still be reading; resetting it would take that away */
        patience = c->stall_timeout < ORDERLY ? c->stall_timeout : ORDERLY;
    t->phase_deadline = t->worker->now + patience;
    if (!t->blocked && !t->fin_sent) {
        shutdown(t->source.fd, SHUT_WR);
        t->fin_sent = true;
    }
    tunnel_read_again(t); /* the FIN may be here already */
    tunnel_rearm(t);
}

static void tunnel_end(struct tunnel *t, enum reason reason, int code, int error, const char *detail, bool usable)
{
    bool open = t->state == TUNNEL_OPEN;
    if (t->ending)
        return;
    t->ending = true;
    announce_failure(t, reason, detail ? detail : "");
    if (open && usable && code != SILENTLY)
        say_goaway(t, last_processed(t), (uint32_t)code);
    if (open && usable)
        tunnel_close_notify(t);
    if (!tunnel_move(t, TUNNEL_CLOSING))
        return;
    struct pool_entry *entry = t->entry;
    if (entry)
        pool_tunnel_gone(t);
    t->worker->tunnel_ended(t, entry, reason, error);
    announce_close(t, reason);
    tunnel_handshake_over(t);
    t->closing_told = true;
    if (usable && !t->socket_broken && !t->peer_eof)
        tunnel_linger(t);
    else
        tunnel_bury(t);
}

void tunnel_fail(struct tunnel *t, enum reason reason, int code, const char *detail)
{
    if (t->state == TUNNEL_CLOSING && t->closing_told)
        tunnel_bury(t);
    else if (t->state < TUNNEL_CLOSING)
        tunnel_end(t, reason, code, 0, detail, t->state != TUNNEL_CONNECTING && !t->socket_broken);
}

void tunnel_socket_failed(struct tunnel *t, int error)
{
    enum reason reason = t->state == TUNNEL_CONNECTING ? connect_reason(error)
                         : t->state == TUNNEL_HANDSHAKE ? REASON_tls_handshake_failed
                                                        : REASON_peer_reset;
    t->socket_broken = true;
    if (t->state == TUNNEL_CLOSING)
        tunnel_fail(t, REASON_ok, SILENTLY, NULL);
    else if (tunnel_alive(t))
        tunnel_end(t, reason, SILENTLY, error, strerror(error), false);
}

bool tunnel_out_of_memory(struct tunnel *t)
{
    if (!t->ending) /* or its last words lack memory as well */
        COUNT(t->worker, shed_memory);
    tunnel_fail(t, REASON_overload, H2_INTERNAL_ERROR, "out of memory");
    return false;
}

bool tunnel_abused(struct tunnel *t, _Atomic uint64_t *counter, const char *detail)
{
    if (!t->ending) /* or there is no room for its last words */
        stat_add(counter, 1);
    tunnel_fail(t, REASON_peer_abuse, H2_ENHANCE_YOUR_CALM, detail);
    return false;
}

void tunnel_count_revoked(struct tunnel *t)
{
    if (t->client)
        COUNT(t->worker, revoked_outbound);
    else
        COUNT(t->worker, revoked_inbound);
}

void tunnel_check_revoked(struct tunnel *t)
{
    struct peer_chain *chain = t->handshake ? t->handshake->peer_chain : t->peer_chain;
    if (!tunnel_alive(t) || !chain || !peer_chain_revoked(chain))
        return;
    tunnel_count_revoked(t);
    tunnel_fail(t, REASON_peer_cert_revoked, H2_NO_ERROR, peer_revoked_detail);
}

void tunnel_finish(struct tunnel *t)
{
    t->in_order = true;
    tunnel_fail(t, REASON_ok, t->goaway_sent ? SILENTLY : H2_NO_ERROR, NULL);
}

void tunnel_stream_left(struct tunnel *t)
{
    if (t->state != TUNNEL_OPEN || t->ending)
        return;
    if (t->client)
        pool_due(t->entry);
    if (t->n_streams)
        return;
    t->idle_since = t->worker->now;
    if (t->goaway_got || t->drain == DRAIN_LAST || (t->client && pool_spent(t)))
        tunnel_finish(t);
    else if (t->client)
        tunnel_rearm(t);
}

/* ---- leaving in order */

void tunnel_drain(struct tunnel *t)
{
    static const uint8_t probe[8] = "draining";
    if (t->state < TUNNEL_OPEN) {
        tunnel_fail(t, REASON_draining, SILENTLY, "the listener is draining");
        return;
    }
    if (t->state != TUNNEL_OPEN || t->drain != DRAIN_NO || !drain_move(t, DRAIN_ANNOUNCED))
        return;
    say_goaway(t, STREAM_ID_LARGEST, H2_NO_ERROR);
    if (!tunnel_frame(t, FRAME_PING, 0, 0, probe, sizeof probe))
        return;
    t->drain_deadline = t->worker->now + t->worker->engine->config.close_linger;
    tunnel_rearm(t);
}

void tunnel_drain_last(struct tunnel *t)
{
    uint32_t last = last_processed(t);
    if (t->drain != DRAIN_ANNOUNCED || !drain_move(t, DRAIN_LAST))
        return;
    t->last_id = last;
    t->drain_deadline = 0;
    say_goaway(t, t->last_id, H2_NO_ERROR);
    if (tunnel_alive(t) && !t->n_streams)
        tunnel_finish(t);
}
