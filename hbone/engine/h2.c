#include "h2.h"

#include <stdlib.h>
#include <string.h>

#include "h2_control.h"
#include "h2_error.h"
#include "h2_headers.h"
#include "stream.h"
#include "stream_receive.h"
#include "stream_window.h"
#include "tunnel.h"
#include "window.h"

/* ---- DATA */

/* Bytes count against the connection on receipt, and are credited on receipt: one slow reader must not stop
 * the others. What a slow reader may hold is bounded by its stream's window. */
static bool receive_on_connection(struct tunnel *t, uint32_t n)
{
    uint8_t body[4];
    t->recv_window -= n;
    if (t->recv_window < 0)
        return h2_error(t, H2_FLOW_CONTROL_ERROR, "DATA beyond the connection's window");
    t->uncredited += n;
    uint32_t most = (uint32_t)t->worker->engine->config.connection_window_max;
    uint32_t credit = window_credit(&t->uncredited, &t->recv_target, most, true);
    if (!credit)
        return true;
    t->recv_window += credit;
    put_u32(body, credit);
    return tunnel_frame(t, FRAME_WINDOW_UPDATE, 0, 0, body, sizeof body);
}

/* `size` is without padding: that brings nothing. */
static bool charge_data(struct tunnel *t, uint32_t size)
{
    uint64_t now = t->worker->now;
    if (size >= TINY || (t->in.flags & FLAG_END_STREAM))
        return true;
    if (size == 0 && !bucket_pour(&t->budgets.empty_data, LIMIT_EMPTY_DATA, 1, now))
        return tunnel_abused(t, &t->worker->stats.abuse_empty_data, "too many empty DATA frames");
    if (!bucket_pour(&t->budgets.tiny_data, LIMIT_TINY_DATA, 1, now))
        return tunnel_abused(t, &t->worker->stats.abuse_tiny_data, "too many tiny DATA frames");
    return true;
}

static bool late_data(struct tunnel *t)
{
    if (bucket_pour(&t->budgets.late_data, LIMIT_LATE_DATA, 1, t->worker->now))
        return true;
    return tunnel_abused(t, &t->worker->stats.abuse_late_data, "too much DATA for streams that ended");
}

static bool begin_data(struct tunnel *t)
{
    struct frame_in *in = &t->in;
    if (h2_idle(t, in->stream))
        return h2_error(t, H2_PROTOCOL_ERROR, "DATA on a stream that is not open");
    in->pad_known = !(in->flags & FLAG_PADDED);
    if ((in->pad_known && !charge_data(t, in->length)) || !receive_on_connection(t, in->length))
        return false;
    in->flow = stream_find(t, in->stream);
    if (!in->pad_known && !in->length)
        return h2_error(t, H2_FRAME_SIZE_ERROR, "padded DATA without a pad length");
    if (!in->flow)
        return late_data(t);
    if (stream_got_end(&in->flow->stream))
        return h2_stream_error(t, in->stream, H2_STREAM_CLOSED);
    if (in->flow->state == FLOW_ASKED)
        return h2_stream_error(t, in->stream, H2_PROTOCOL_ERROR); /* before the answer */
    in->flow->stream.recv_window -= in->length;
    if (in->flow->stream.recv_window < 0)
        return h2_stream_error(t, in->stream, H2_FLOW_CONTROL_ERROR);
    return true;
}

static bool take_pad_length(struct tunnel *t, uint8_t pad)
{
    struct frame_in *in = &t->in;
    in->pad_known = true;
    in->left--;
    in->pad = pad;
    if (pad > in->left)
        return h2_error(t, H2_PROTOCOL_ERROR, "padding longer than the frame");
    if (!charge_data(t, in->left - pad))
        return false;
    if (in->flow)
        stream_credit(in->flow, (size_t)pad + 1, false);
    return tunnel_alive(t);
}

/* Takes what there is of a DATA frame's payload; the bytes used, or -1. */
static ssize_t data_bytes(struct tunnel *t, uint8_t *p, size_t n)
{
    struct frame_in *in = &t->in;
    if (!in->pad_known)
        return take_pad_length(t, *p) ? 1 : -1;
    size_t k = n < in->left ? n : in->left;
    size_t wanted = in->left > in->pad ? in->left - in->pad : 0;
    if (in->flow && wanted)
        stream_gather(in->flow, p, k < wanted ? k : wanted);
    in->left -= (uint32_t)k;
    return tunnel_alive(t) ? (ssize_t)k : -1;
}

/* ---- frames */

static bool exactly(struct tunnel *t, uint32_t size)
{
    return t->in.length == size || h2_error(t, H2_FRAME_SIZE_ERROR, "control frame of a wrong size");
}

static bool on_stream(struct tunnel *t, bool wanted)
{
    return (t->in.stream != 0) == wanted || h2_error(t, H2_PROTOCOL_ERROR, "frame on a wrong stream");
}

static bool check_settings(struct tunnel *t)
{
    if (t->in.flags & FLAG_ACK)
        return exactly(t, 0);
    if (t->in.length % 6)
        return h2_error(t, H2_FRAME_SIZE_ERROR, "SETTINGS of a wrong size");
    if (t->in.length > 6 * SETTINGS_ENTRIES)
        return tunnel_abused(t, &t->worker->stats.abuse_settings, "too many entries in SETTINGS");
    return true;
}

/* Sizes and streams, before a byte of the body is read. */
static bool check_frame(struct tunnel *t)
{
    struct frame_in *in = &t->in;
    switch (in->type) {
    case FRAME_DATA:
        return on_stream(t, true);
    case FRAME_HEADERS:
        if (in->length > HPACK_BLOCK_LARGEST)
            return tunnel_abused(t, &t->worker->stats.abuse_headers, "header block too large");
        return on_stream(t, true);
    case FRAME_CONTINUATION:
        if (!t->block_stream)
            return h2_error(t, H2_PROTOCOL_ERROR, "CONTINUATION out of place");
        if (++t->continuations > CONTINUATIONS || t->block_size + in->length > CONTINUED_BLOCK)
            return tunnel_abused(t, &t->worker->stats.abuse_continuation, "too many CONTINUATION frames");
        return true;
    case FRAME_PRIORITY:
        return on_stream(t, true) && exactly(t, 5);
    case FRAME_RST_STREAM:
        return on_stream(t, true) && exactly(t, 4);
    case FRAME_SETTINGS:
        return on_stream(t, false) && check_settings(t);
    case FRAME_PUSH_PROMISE:
        return h2_error(t, H2_PROTOCOL_ERROR, "PUSH_PROMISE");
    case FRAME_PING:
        return on_stream(t, false) && exactly(t, 8);
    case FRAME_GOAWAY:
        if (in->length < 8 || in->length > FRAME_DEFAULT_MAX)
            return h2_error(t, H2_FRAME_SIZE_ERROR, "GOAWAY of a wrong size");
        return on_stream(t, false);
    case FRAME_WINDOW_UPDATE:
        return exactly(t, 4);
    default:
        in->ignored = true; /* RFC 9113 4.1 */
        return h2_glitch(t, "too many frames of unknown types");
    }
}

static bool begin_frame(struct tunnel *t)
{
    struct frame_in *in = &t->in;
    in->length = in->left = get_u24(in->header);
    in->type = in->header[3];
    in->flags = in->header[4];
    in->stream = get_u32(in->header + 5) & STREAM_ID_LARGEST;
    in->pad = 0;
    in->pad_known = true;
    in->ignored = false;
    in->flow = NULL;
    if (in->length > t->worker->engine->config.max_frame_size)
        return h2_error(t, H2_FRAME_SIZE_ERROR, "frame larger than allowed");
    if (!t->greeted && in->type != FRAME_SETTINGS)
        return h2_error(t, H2_PROTOCOL_ERROR, "the first frame is not SETTINGS");
    if (t->block_stream && (in->type != FRAME_CONTINUATION || in->stream != t->block_stream))
        return h2_error(t, H2_PROTOCOL_ERROR, "a frame inside a header block");
    if (!check_frame(t))
        return false;
    return in->type == FRAME_DATA ? begin_data(t) : true;
}

static bool whole_control_frame(struct tunnel *t, const uint8_t *body)
{
    if (t->in.ignored)
        return true;
    switch (t->in.type) {
    case FRAME_HEADERS:
        return h2_headers(t, body, t->in.length);
    case FRAME_CONTINUATION:
        return h2_continuation(t, body, t->in.length);
    default:
        return h2_control(t, body, t->in.length);
    }
}

/* A control frame is parsed where it lies, or gathered when a record or read ended inside it. */
static ssize_t control_bytes(struct tunnel *t, const uint8_t *p, size_t n)
{
    struct frame_in *in = &t->in;
    size_t k = n < in->left ? n : in->left;
    in->left -= (uint32_t)k;
    if (in->ignored)
        return (ssize_t)k;
    if (k == in->length)
        return whole_control_frame(t, p) ? (ssize_t)k : -1;
    if (!in->body) {
        in->fill = 0;
        if (!(in->body = malloc(in->length))) {
            tunnel_out_of_memory(t);
            return -1;
        }
    }
    memcpy(in->body + in->fill, p, k);
    in->fill += (uint32_t)k;
    if (in->left)
        return (ssize_t)k;
    bool going = whole_control_frame(t, in->body);
    free(in->body);
    in->body = NULL;
    return going ? (ssize_t)k : -1;
}

static bool end_frame(struct tunnel *t)
{
    struct frame_in *in = &t->in;
    struct flow *f = in->flow;
    in->header_fill = 0;
    in->flow = NULL;
    if (in->type == FRAME_DATA && (in->flags & FLAG_END_STREAM) && f)
        stream_ended(f);
    return tunnel_alive(t);
}

static bool take_preface(struct tunnel *t, uint8_t **p, size_t *n)
{
    while (t->preface_left && *n) {
        if (**p != CLIENT_PREFACE[CLIENT_PREFACE_SIZE - t->preface_left])
            return h2_error(t, H2_PROTOCOL_ERROR, "this is not an HTTP/2 client");
        t->preface_left--;
        ++*p;
        --*n;
    }
    return true;
}

static bool take_header(struct tunnel *t, uint8_t **p, size_t *n)
{
    struct frame_in *in = &t->in;
    size_t k = FRAME_HEADER - in->header_fill;
    if (k > *n)
        k = *n;
    memcpy(in->header + in->header_fill, *p, k);
    in->header_fill += (uint8_t)k;
    *p += k;
    *n -= k;
    if (in->header_fill < FRAME_HEADER)
        return true;
    if (!begin_frame(t))
        return false;
    if (in->left)
        return true;
    if (in->type != FRAME_DATA && !whole_control_frame(t, in->header))
        return false;
    return end_frame(t);
}

bool h2_input(struct tunnel *t, uint8_t *p, size_t n)
{
    if (t->preface_left && !take_preface(t, &p, &n))
        return false;
    while (n) {
        if (t->in.header_fill < FRAME_HEADER) {
            if (!take_header(t, &p, &n))
                return false;
            continue;
        }
        ssize_t used = t->in.type == FRAME_DATA ? data_bytes(t, p, n) : control_bytes(t, p, n);
        if (used < 0)
            return false;
        p += used;
        n -= (size_t)used;
        if (!t->in.left && !end_frame(t))
            return false;
    }
    return true;
}
