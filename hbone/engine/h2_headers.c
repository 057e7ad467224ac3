#include "h2_headers.h"

#include <stdlib.h>
#include <string.h>

#include "event.h"
#include "flow.h"
#include "flow_end.h"
#include "flow_established.h"
#include "flow_verdict.h"
#include "h2_error.h"
#include "message.h"
#include "stream.h"
#include "stream_receive.h"
#include "tunnel.h"

/* ---- server: requests */

static bool answer_without_flow(struct tunnel *t, uint32_t stream, unsigned status, bool end)
{
    uint8_t block[8];
    size_t size = 0;
    hpack_encode_status(block, &size, sizeof block, status);
    return tunnel_headers(t, stream, block, size, end);
}

/* Streams that end before they had a flow. */
static void forget(struct tunnel *t, uint32_t stream, bool ended)
{
    if (!ended)
        t->forgotten[t->forgotten_at++ % FORGOTTEN_STREAMS] = stream;
}

/* A peer that ignores the limit it was told is to blame; one that meets our overload or drain is not. */
static bool refuse_stream(struct tunnel *t, uint32_t stream, bool ended, bool to_blame)
{
    COUNT(t->worker, streams_refused);
    forget(t, stream, ended);
    return to_blame ? h2_stream_error(t, stream, H2_REFUSED_STREAM)
                    : tunnel_reset_stream(t, stream, H2_REFUSED_STREAM);
}

/* A malformed request is a stream error; it may be answered before (RFC 9113 8.1.1). */
static bool malformed(struct tunnel *t, uint32_t stream, bool ended, bool answer)
{
    COUNT(t->worker, bad_requests);
    forget(t, stream, ended);
    if (answer && !answer_without_flow(t, stream, 400, false))
        return false;
    return h2_stream_error(t, stream, H2_PROTOCOL_ERROR);
}

static bool not_served(struct tunnel *t, uint32_t stream, bool ended)
{
    COUNT(t->worker, bad_requests);
    forget(t, stream, ended);
    return answer_without_flow(t, stream, 400, true) && (ended || tunnel_reset_stream(t, stream, H2_NO_ERROR));
}

static void announce(struct flow *f, const struct tunnel *t, const struct header_list *list, const struct request *r)
{
    struct field fields[HPACK_FIELDS + 2];
    const char *identity = t->peer_identity;
    unsigned n = 0;
    /* method and authority travel as one pair, so that sizes rather than terminators delimit them */
    fields[n++] = (struct field){r->method.value, r->authority.value, r->method.value_size, r->authority.value_size};
    for (unsigned i = r->first_field; i < list->n; i++)
        fields[n++] = list->fields[i];
    struct engine_event *event = event_new(EVENT_CONNECT_REQUESTED, &identity, 1, fields, n);
    if (!flow_announce(f, event))
        return;
    event->tunnel = t->id;
    event->kind = LISTENER_HBONE;
    event->peer = t->peer;
    event->local = t->local;
}

/* NULL when it cannot be taken. Not yet announced. */
static struct flow *flow_of_stream(struct tunnel *t, uint32_t id)
{
    struct flow *f = flow_new(t->worker, LISTENER_HBONE, t->tag);
    if (!f)
        return NULL;
    f->shape = SHAPE_HBONE;
    stream_attach(f, t, id);
    return f;
}

static bool new_request(struct tunnel *t, uint32_t stream, bool ended)
{
    struct header_list *list = &t->worker->headers;
    struct request r;
    t->next_id = stream + 2;
    if (t->n_streams >= t->worker->engine->config.stream_limit)
        return refuse_stream(t, stream, ended, t->settings_acked);
    if ((t->drain == DRAIN_LAST && stream > t->last_id) || event_backlog(t->worker))
        return refuse_stream(t, stream, ended, false);
    enum message_verdict verdict = message_request(list, &r);
    if (list->over && verdict != MESSAGE_MALFORMED)
        verdict = MESSAGE_NOT_CONNECT; /* too much of it: 400 */
    if (verdict == MESSAGE_NOT_CONNECT)
        return not_served(t, stream, ended);
    if (verdict != MESSAGE_FINE)
        return malformed(t, stream, ended, verdict == MESSAGE_BAD_CONNECT);
    struct flow *f = flow_of_stream(t, stream);
    if (!f)
        return refuse_stream(t, stream, ended, false);
    struct verdict_key key;
    verdict_key_request(&key, t->tag, &t->local, &t->peer, t->peer_identity, &r.authority,
                        list->fields + r.first_field, list->n - r.first_field);
    if (!flow_by_kept_verdict(f, &key, &t->peer))
        announce(f, t, list, &r);
    if (ended && flow_alive(f))
        stream_ended(f);
    return tunnel_alive(t);
}

/* ---- client: answers */

static bool answered(struct flow *f, unsigned status, bool ended)
{
    struct tunnel *t = f->stream.tunnel;
    f->status = (uint16_t)status;
    if (ended)
        stream_note_end(&f->stream);
    if (status != 200) {
        stream_reset(f, H2_CANCEL);
        flow_drop(f, REASON_peer_refused, 0);
        return tunnel_alive(t);
    }
    f->stream.answered = true;
    flow_established(f, &t->worker->headers);
    if (ended && flow_alive(f))
        stream_ended(f);
    return tunnel_alive(t);
}

static bool on_answer(struct tunnel *t, struct flow *f, bool ended)
{
    unsigned status = message_status(&t->worker->headers);
    if (!status || status == 101 || (status < 200 && ended))
        return h2_stream_error(t, f->stream.id, H2_PROTOCOL_ERROR);
    if (status < 200)
        return h2_glitch(t, "too many interim answers");
    return answered(f, status, ended);
}

/* ---- both */

static bool on_trailers(struct tunnel *t, struct flow *f, bool ended)
{
    if (stream_got_end(&f->stream))
        return h2_stream_error(t, f->stream.id, H2_STREAM_CLOSED);
    if (!ended || !message_trailers(&t->worker->headers))
        return h2_stream_error(t, f->stream.id, H2_PROTOCOL_ERROR);
    stream_ended(f);
    return tunnel_alive(t);
}

static bool recently_ended(const struct tunnel *t, uint32_t stream)
{
    for (int i = 0; i < FORGOTTEN_STREAMS; i++)
        if (t->forgotten[i] == stream)
            return true;
    return false;
}

static bool on_message(struct tunnel *t, uint32_t stream, bool ended)
{
    struct flow *f = stream_find(t, stream);
    if (f && t->client && !f->stream.answered)
        return on_answer(t, f, ended);
    if (f)
        return on_trailers(t, f, ended);
    if (recently_ended(t, stream))
        return h2_glitch(t, "too many header blocks for streams that ended");
    if (t->client || stream % 2 == 0 || stream < t->next_id)
        return h2_error(t, H2_PROTOCOL_ERROR, "HEADERS on a stream that cannot be opened");
    return new_request(t, stream, ended);
}

static bool whole_block(struct tunnel *t, uint32_t stream, const uint8_t *block, size_t size, bool ended)
{
    switch (hpack_decode(&t->hpack, block, size, &t->worker->headers)) {
    case HPACK_OK:
        return on_message(t, stream, ended);
    case HPACK_TOO_LARGE:
        return tunnel_abused(t, &t->worker->stats.abuse_headers, "header list too large");
    case HPACK_NO_MEMORY:
        return tunnel_out_of_memory(t);
    default:
        return h2_error(t, H2_COMPRESSION_ERROR, "header block does not decode");
    }
}

static bool keep_block(struct tunnel *t, const uint8_t *bytes, uint32_t size)
{
    uint8_t *block = realloc(t->block, t->block_size + size + 1);
    if (!block)
        return tunnel_out_of_memory(t);
    memcpy(block + t->block_size, bytes, size);
    t->block = block;
    t->block_size += size;
    return true;
}

bool h2_headers(struct tunnel *t, const uint8_t *body, uint32_t size)
{
    uint32_t pad = 0;
    bool ended = t->in.flags & FLAG_END_STREAM;
    if (t->in.flags & FLAG_PADDED) {
        if (!size)
            return h2_error(t, H2_FRAME_SIZE_ERROR, "padded HEADERS without a pad length");
        pad = *body++;
        size--;
    }
    if (t->in.flags & FLAG_PRIORITY) {
        if (size < 5)
            return h2_error(t, H2_FRAME_SIZE_ERROR, "HEADERS too short for their priority");
        body += 5;
        size -= 5;
    }
    if (pad > size)
        return h2_error(t, H2_PROTOCOL_ERROR, "padding longer than the frame");
    size -= pad;
    if (t->in.flags & FLAG_END_HEADERS)
        return whole_block(t, t->in.stream, body, size, ended);
    t->block_size = 0;
    t->continuations = 0;
    t->block_stream = t->in.stream;
    t->block_end_stream = ended;
    return keep_block(t, body, size);
}

bool h2_continuation(struct tunnel *t, const uint8_t *body, uint32_t size)
{
    if (!keep_block(t, body, size))
        return false;
    if (!(t->in.flags & FLAG_END_HEADERS))
        return true;
    uint32_t stream = t->block_stream;
    t->block_stream = 0;
    bool going = whole_block(t, stream, t->block, t->block_size, t->block_end_stream);
    free(t->block);
    t->block = NULL;
    return going;
}
