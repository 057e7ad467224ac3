/* The way out of a tunnel: frames gathered in one block, sealed together, sent with one call. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "tunnel.h"

enum { SMALL_REST = 32 << 10, FIRST_LARGEST = 3 << 10, KEY_UPDATE = 24, ALERT_WARNING = 1, CLOSE_NOTIFY = 0 };

/* ---- ciphertext */

static void drop_sealed(struct tunnel *t)
{
    if (t->sealed_is_block)
        block_put(&t->worker->buffers, t->sealed);
    else
        free(t->sealed);
    t->sealed = NULL;
    t->sealed_start = t->sealed_end = 0;
    t->sealed_is_block = false;
}

/* Keeps what the socket did not take. The worker's seal buffer itself is kept when much is left of it. */
static bool keep_rest(struct tunnel *t, const uint8_t *bytes, size_t size)
{
    struct worker *w = t->worker;
    bool lend = size > SMALL_REST && bytes >= w->seal_buffer && bytes < w->seal_buffer + BLOCK_SIZE;
    uint8_t *other = lend ? block_get(&w->buffers) : malloc(size);
    if (!other)
        return false;
    if (lend) {
        t->sealed = w->seal_buffer;
        t->sealed_start = (size_t)(bytes - w->seal_buffer);
        w->seal_buffer = other;
    } else {
        memcpy(other, bytes, size);
        t->sealed = other;
        t->sealed_start = 0;
    }
    t->sealed_is_block = lend;
    t->sealed_end = t->sealed_start + size;
    t->blocked = true;
    return true;
}

/* Behind bytes that wait already; only small things come here. */
static bool keep_more(struct tunnel *t, const uint8_t *bytes, size_t size)
{
    size_t waiting = t->sealed_end - t->sealed_start;
    uint8_t *joined = malloc(waiting + size);
    if (!joined)
        return false;
    memcpy(joined, t->sealed + t->sealed_start, waiting);
    memcpy(joined + waiting, bytes, size);
    drop_sealed(t);
    t->sealed = joined;
    t->sealed_end = waiting + size;
    return true;
}

/* The bytes the socket took; -1 when the tunnel failed over it. */
static ssize_t send_some(struct tunnel *t, const uint8_t *bytes, size_t size)
{
    ssize_t sent = send(t->source.fd, bytes, size, MSG_NOSIGNAL);
    if (sent >= 0)
        return sent;
    if (errno == EAGAIN || errno == EINTR)
        return 0;
    tunnel_socket_failed(t, errno);
    return -1;
}

void tunnel_send_raw(struct tunnel *t, const uint8_t *bytes, size_t size)
{
    ssize_t sent = 0;
    bool kept = true;
    if (t->state == TUNNEL_DEAD || t->fin_sent)
        return;
    if (t->blocked) {
        kept = keep_more(t, bytes, size);
    } else if ((sent = send_some(t, bytes, size)) < 0) {
        return;
    } else if ((size_t)sent < size) {
        kept = keep_rest(t, bytes + sent, size - (size_t)sent);
    }
    if (!kept) {
        t->socket_broken = true; /* what comes next would not follow what was sent */
        tunnel_out_of_memory(t);
    }
}

/* ---- sealing */

static size_t seal_all(struct tunnel *t, uint8_t *out)
{
    uint8_t *plain = t->plain;
    size_t left = t->plain_size, made = 0;
    uint64_t records = 0;
    while (left) {
        size_t n = left < RECORD_PLAIN ? left : RECORD_PLAIN;
        size_t sealed = record_seal(&t->sealing, plain, n, CONTENT_APPLICATION_DATA, out + made);
        if (!sealed)
            return 0;
        made += sealed;
        plain += n;
        left -= n;
        records++;
    }
    stat_add(&t->worker->stats.records_out, records);
    t->plain_size = 0;
    return made;
}

void tunnel_release_empty(struct tunnel *t)
{
    if (!t->plain || t->plain_size)
        return;
    block_put(&t->worker->buffers, t->plain);
    t->plain = NULL;
}

void tunnel_send_first(struct tunnel *t, const uint8_t *bytes, size_t size)
{
    if (size > FIRST_LARGEST || !(t->first = malloc(size))) {
        tunnel_send_raw(t, bytes, size);
        return;
    }
    memcpy(t->first, bytes, size);
    t->first_size = size;
}

_Static_assert(FIRST_LARGEST <= BLOCK_SIZE - (PLAIN_ROOM + PLAIN_SLACK) / RECORD_PLAIN * (RECORD_PLAIN + RECORD_OVERHEAD),
               "it fits in front of the fullest block");

/* Puts it in front of what is about to be sealed; the bytes it takes. */
static size_t take_first(struct tunnel *t, uint8_t *out)
{
    size_t size = t->first_size;
    if (!t->first)
        return 0;
    memcpy(out, t->first, size);
    free(t->first);
    t->first = NULL;
    t->first_size = 0;
    return size;
}

/* Seals and sends what is gathered, with the keys as they are. */
static void flush_gathered(struct tunnel *t)
{
    if (t->state < TUNNEL_OPEN || t->state == TUNNEL_DEAD || t->blocked)
        return;
    if (t->plain_size) {
        uint8_t *out = t->worker->seal_buffer;
        size_t first = take_first(t, out), sealed = seal_all(t, out + first);
        if (sealed)
            tunnel_send_raw(t, out, first + sealed);
        else
            tunnel_fail(t, REASON_internal, SILENTLY, "sealing failed");
        t->budgets.pings_queued = 0;
    }
    tunnel_release_empty(t);
}

/* A whole record of our own behind everything gathered so far. */
static void send_record(struct tunnel *t, uint8_t *plain, size_t size, enum content_type type)
{
    uint8_t out[64];
    flush_gathered(t);
    size_t n = record_seal(&t->sealing, plain, size, type, out);
    COUNT(t->worker, records_out);
    if (n)
        tunnel_send_raw(t, out, n);
}

void tunnel_close_notify(struct tunnel *t)
{
    uint8_t alert[3] = {ALERT_WARNING, CLOSE_NOTIFY};
    t->notify_due = t->blocked; /* then it goes out behind the frames that wait to be sealed */
    if (!t->notify_due)
        send_record(t, alert, 2, CONTENT_ALERT);
}

void tunnel_update_key(struct tunnel *t, bool request)
{
    uint8_t message[6] = {KEY_UPDATE, 0, 0, 1, request};
    send_record(t, message, 5, CONTENT_HANDSHAKE);
    if (!record_keys_update(&t->sealing, true)) {
        t->socket_broken = true; /* the peer has changed its key */
        tunnel_out_of_memory(t);
    }
    COUNT(t->worker, keys_updated);
}

void tunnel_flush(struct tunnel *t)
{
    flush_gathered(t);
    if (t->state == TUNNEL_OPEN && t->sealing.sequence >= t->worker->engine->config.rekey_records)
        tunnel_update_key(t, true); /* AES-GCM keys wear out: RFC 8446 5.5 */
}

void tunnel_writable(struct tunnel *t)
{
    if (!t->blocked)
        return;
    ssize_t sent = send_some(t, t->sealed + t->sealed_start, t->sealed_end - t->sealed_start);
    if (sent < 0)
        return;
    t->sealed_start += (size_t)sent;
    if (t->sealed_start < t->sealed_end)
        return;
    drop_sealed(t);
    t->blocked = false;
    tunnel_flush(t);
    if (!t->blocked && t->notify_due)
        tunnel_close_notify(t);
    if (!t->blocked)
        list_splice(&t->worker->ready, &t->starved);
}

/* ---- frames */

void tunnel_mark(struct tunnel *t)
{
    if (!list_linked(&t->dirty))
        list_append(&t->worker->dirty, &t->dirty);
}

static bool have_block(struct tunnel *t)
{
    return t->plain || (t->plain = block_get(&t->worker->buffers));
}

bool tunnel_room(struct tunnel *t, size_t n)
{
    if (!have_block(t))
        return false;
    if (t->plain_size + n <= PLAIN_ROOM)
        return true;
    tunnel_flush(t);
    return tunnel_alive(t) && !t->blocked && have_block(t);
}

/* Control frames may use the slack behind the room for DATA. */
static uint8_t *reserve(struct tunnel *t, size_t n)
{
    enum { ALL = PLAIN_ROOM + PLAIN_SLACK };
    if (!tunnel_alive(t) || t->state != TUNNEL_OPEN)
        return NULL;
    if (t->plain_size + n > ALL)
        tunnel_flush(t);
    if (!tunnel_alive(t))
        return NULL;
    if (t->plain_size + n > ALL) {
        tunnel_abused(t, &t->worker->stats.abuse_control_queue, "control frames queue up and are not read");
        return NULL;
    }
    if (!have_block(t)) {
        tunnel_out_of_memory(t);
        return NULL;
    }
    uint8_t *p = t->plain + t->plain_size;
    t->plain_size += n;
    tunnel_mark(t);
    return p;
}

bool tunnel_frame(struct tunnel *t, int type, int flags, uint32_t stream, const void *body, uint32_t size)
{
    uint8_t *p = reserve(t, FRAME_HEADER + (size_t)size);
    if (!p)
        return false;
    put_frame_header(p, size, type, flags, stream);
    if (size)
        memcpy(p + FRAME_HEADER, body, size);
    return true;
}

bool tunnel_headers(struct tunnel *t, uint32_t stream, const uint8_t *block, size_t size, bool end)
{
    size_t update = t->size_update_due;
    uint8_t *p = reserve(t, FRAME_HEADER + update + size);
    if (!p)
        return false;
    put_frame_header(p, (uint32_t)(update + size), FRAME_HEADERS, FLAG_END_HEADERS | (end ? FLAG_END_STREAM : 0),
                     stream);
    if (update)
        p[FRAME_HEADER] = 0x20; /* dynamic table size 0 (RFC 7541 4.2, 6.3) */
    memcpy(p + FRAME_HEADER + update, block, size);
    t->size_update_due = false;
    return true;
}

bool tunnel_reset_stream(struct tunnel *t, uint32_t stream, uint32_t code)
{
    uint8_t body[4];
    put_u32(body, code);
    return tunnel_frame(t, FRAME_RST_STREAM, 0, stream, body, sizeof body);
}

static void put_setting(uint8_t *body, uint32_t *size, enum setting id, uint64_t value)
{
    put_u16(body + *size, id);
    put_u32(body + *size + 2, (uint32_t)value);
    *size += 6;
}

bool tunnel_preface(struct tunnel *t)
{
    const struct engine_config *c = &t->worker->engine->config;
    uint8_t body[36];
    uint32_t size = 0;
    if (t->client) {
        uint8_t *p = reserve(t, CLIENT_PREFACE_SIZE);
        if (!p)
            return false;
        memcpy(p, CLIENT_PREFACE, CLIENT_PREFACE_SIZE);
        put_setting(body, &size, SETTING_ENABLE_PUSH, 0);
    } else {
        put_setting(body, &size, SETTING_MAX_CONCURRENT_STREAMS, c->stream_limit);
    }
    put_setting(body, &size, SETTING_INITIAL_WINDOW_SIZE, c->stream_window);
    put_setting(body, &size, SETTING_MAX_FRAME_SIZE, c->max_frame_size);
    put_setting(body, &size, SETTING_MAX_HEADER_LIST_SIZE, c->max_header_list);
    if (!tunnel_frame(t, FRAME_SETTINGS, 0, 0, body, size))
        return false;
    put_u32(body, t->recv_target - WINDOW_DEFAULT);
    return t->recv_target == WINDOW_DEFAULT || tunnel_frame(t, FRAME_WINDOW_UPDATE, 0, 0, body, 4);
}
