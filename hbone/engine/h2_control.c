#include "h2_control.h"

#include <string.h>

#include "flow.h"
#include "flow_end.h"
#include "h2_error.h"
#include "pool.h"
#include "pool_entry.h"
#include "stream.h"
#include "stream_receive.h"
#include "stream_send.h"
#include "tunnel.h"

/* ---- SETTINGS */

static bool new_stream_window(struct tunnel *t, uint32_t window)
{
    int64_t delta = (int64_t)window - t->peer_window;
    if (window > WINDOW_LARGEST)
        return h2_error(t, H2_FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE too large");
    t->peer_window = window;
    for (int i = 0; i < STREAM_BUCKETS; i++)
        for (struct flow *f = t->streams[i]; f; f = f->stream.chain) {
            if (f->stream.send_window + delta > WINDOW_LARGEST)
                return h2_error(t, H2_FLOW_CONTROL_ERROR, "SETTINGS make a window too large");
            stream_window_changed(f, delta);
        }
    return true;
}

static bool on_setting(struct tunnel *t, uint32_t id, uint32_t value)
{
    switch (id) {
    case SETTING_HEADER_TABLE_SIZE:
        t->size_update_due = true;
        return true;
    case SETTING_ENABLE_PUSH:
        if (value > 1 || (t->client && value))
            return h2_error(t, H2_PROTOCOL_ERROR, "bad SETTINGS_ENABLE_PUSH");
        return true;
    case SETTING_MAX_CONCURRENT_STREAMS:
        t->peer_streams = value;
        return true;
    case SETTING_INITIAL_WINDOW_SIZE:
        return new_stream_window(t, value);
    case SETTING_MAX_FRAME_SIZE:
        if (value < FRAME_DEFAULT_MAX || value > FRAME_LARGEST_MAX)
            return h2_error(t, H2_PROTOCOL_ERROR, "bad SETTINGS_MAX_FRAME_SIZE");
        t->peer_frame = value;
        return true;
    default:
        return true;
    }
}

static bool on_settings(struct tunnel *t, const uint8_t *body, uint32_t size)
{
    if (t->in.flags & FLAG_ACK) {
        if (t->settings_acked)
            return h2_glitch(t, "SETTINGS acknowledged twice");
        t->settings_acked = true;
        t->settings_deadline = 0;
        return t->greeted || h2_error(t, H2_PROTOCOL_ERROR, "the first SETTINGS is an acknowledgement");
    }
    if (!bucket_pour(&t->budgets.settings, LIMIT_SETTINGS, 1, t->worker->now))
        return tunnel_abused(t, &t->worker->stats.abuse_settings, "too many SETTINGS frames");
    for (uint32_t i = 0; i < size; i += 6)
        if (!on_setting(t, get_u16(body + i), get_u32(body + i + 2)))
            return false;
    if (!tunnel_frame(t, FRAME_SETTINGS, FLAG_ACK, 0, NULL, 0))
        return false;
    if (!t->greeted)
        tunnel_greeted(t);
    else if (t->client)
        pool_tunnel_greeted(t);
    return tunnel_alive(t);
}

/* ---- PING */

static bool on_ping(struct tunnel *t, const uint8_t *body)
{
    if (t->in.flags & FLAG_ACK) {
        if (t->drain == DRAIN_ANNOUNCED && memcmp(body, "draining", 8) == 0)
            tunnel_drain_last(t);
        else if (t->ping_sent) {
            t->ping_sent = 0;
            tunnel_rearm(t); /* the next PING is due before this one's deadline */
        } else
            return h2_glitch(t, "too many answers to no PING");
        return tunnel_alive(t);
    }
    if (!bucket_pour(&t->budgets.pings, LIMIT_PINGS, 1, t->worker->now) ||
        ++t->budgets.pings_queued > PINGS_QUEUED)
        return tunnel_abused(t, &t->worker->stats.abuse_pings, "too many PING frames");
    return tunnel_frame(t, FRAME_PING, FLAG_ACK, 0, body, 8);
}

/* ---- WINDOW_UPDATE */

static bool connection_window(struct tunnel *t, uint32_t increment)
{
    bool was_shut = t->send_window <= 0;
    if (t->send_window + increment > WINDOW_LARGEST)
        return h2_error(t, H2_FLOW_CONTROL_ERROR, "the connection's window overflows");
    t->send_window += increment;
    if (was_shut && t->send_window > 0 && !t->blocked)
        list_splice(&t->worker->ready, &t->starved);
    return true;
}

static bool stream_window(struct tunnel *t, uint32_t increment)
{
    struct flow *f = stream_find(t, t->in.stream);
    if (!f && h2_idle(t, t->in.stream))
        return h2_error(t, H2_PROTOCOL_ERROR, "WINDOW_UPDATE on a stream that is not open");
    if (!f)
        return true; /* on its way when the stream ended */
    if (f->stream.send_window + increment > WINDOW_LARGEST)
        return h2_stream_error(t, t->in.stream, H2_FLOW_CONTROL_ERROR);
    stream_window_changed(f, increment);
    return true;
}

static bool on_window_update(struct tunnel *t, const uint8_t *body)
{
    uint32_t increment = get_u32(body) & STREAM_ID_LARGEST;
    if (--t->budgets.window_updates < 0)
        return tunnel_abused(t, &t->worker->stats.abuse_window_updates, "too many WINDOW_UPDATE frames");
    if (!increment && t->in.stream && !h2_idle(t, t->in.stream))
        return stream_find(t, t->in.stream) ? h2_stream_error(t, t->in.stream, H2_PROTOCOL_ERROR)
                                            : h2_glitch(t, "WINDOW_UPDATE of zero");
    if (!increment)
        return h2_error(t, H2_PROTOCOL_ERROR, "WINDOW_UPDATE of zero");
    return t->in.stream ? stream_window(t, increment) : connection_window(t, increment);
}

/* ---- RST_STREAM */

/* A stream that carried bytes cost the peer as much as us, and applications do end connections by reset: only
 * streams given up before that draw on the budgets. A server's resets are its answers. */
static bool was_used(const struct flow *f)
{
    return f && f->established && stat_get(&f->slot->from_client) + stat_get(&f->slot->to_client) > 0;
}

static bool charge_reset(struct tunnel *t, const struct flow *f)
{
    struct budgets *b = &t->budgets;
    uint64_t now = t->worker->now;
    if (t->client || was_used(f))
        return true;
    if (!bucket_pour(&b->resets, LIMIT_RESETS, 1, now))
        return tunnel_abused(t, &t->worker->stats.abuse_resets, "too many streams reset");
    b->streams_ended++;
    if (f && now - f->born < 1000)
        b->streams_short++;
    if (b->streams_ended > SHORT_STREAMS_AFTER && b->streams_short * 2 > b->streams_ended)
        return tunnel_abused(t, &t->worker->stats.abuse_short_streams, "most streams are reset within a second");
    return true;
}

/* Before the answer REFUSED_STREAM says that nothing was done: another tunnel may do it. */
static void reset_before_answer(struct flow *f, uint32_t code)
{
    COUNT(f->worker, streams_refused);
    if (code == H2_REFUSED_STREAM && f->retries < POOL_RETRIES)
        pool_retry(f);
    else
        flow_drop(f, code == H2_REFUSED_STREAM ? REASON_stream_limit : REASON_peer_reset, 0);
}

static bool on_reset(struct tunnel *t, const uint8_t *body)
{
    uint32_t code = get_u32(body);
    struct flow *f = stream_find(t, t->in.stream);
    if (!f && h2_idle(t, t->in.stream))
        return h2_error(t, H2_PROTOCOL_ERROR, "RST_STREAM on a stream that is not open");
    if (!charge_reset(t, f))
        return false;
    if (!f)
        return true;
    /* a peer that has said everything and wants no more: what it said still counts */
    bool complete = code == H2_NO_ERROR && stream_got_end(&f->stream) && f->established;
    stream_note_end(&f->stream); /* nothing more will come: the stream need not be remembered */
    stream_deliver(f);
    if (!flow_alive(f))
        return tunnel_alive(t);
    if (f->state == FLOW_ASKED) {
        reset_before_answer(f, code);
    } else if (complete) {
        stream_note_sent_end(&f->stream);
        flow_finish_if_done(f);
    } else {
        flow_drop(f, REASON_peer_reset, 0);
    }
    return tunnel_alive(t);
}

/* ---- */

bool h2_control(struct tunnel *t, const uint8_t *body, uint32_t size)
{
    switch (t->in.type) {
    case FRAME_SETTINGS:
        return on_settings(t, body, size);
    case FRAME_PING:
        return on_ping(t, body);
    case FRAME_WINDOW_UPDATE:
        return on_window_update(t, body);
    case FRAME_RST_STREAM:
        return on_reset(t, body);
    case FRAME_GOAWAY:
        if (t->goaway_got && !h2_glitch(t, "too many GOAWAY frames"))
            return false;
        pool_peer_leaves(t, get_u32(body) & STREAM_ID_LARGEST);
        return tunnel_alive(t);
    case FRAME_PRIORITY:
        if (++t->budgets.priorities > PRIORITIES)
            return tunnel_abused(t, &t->worker->stats.abuse_priority, "too many PRIORITY frames");
        return true;
    default:
        return true;
    }
}
