#include "tunnel_read.h"

#include <stdio.h>
#include <string.h>

#include "h2.h"
#include "tunnel.h"

enum {
    RECORD_HEADER = 5,
    TICKET_RECORD_LARGEST = 4096,
    ALERT_CLOSE_NOTIFY = 0,
    ALERT_USER_CANCELED = 90,
    MESSAGE_NEW_SESSION_TICKET = 4,
    MESSAGE_KEY_UPDATE = 24,
};

/* ---- handshake */

static struct handshake *handshake_of(struct tunnel *t)
{
    if (t->handshake)
        return t->handshake;
    list_remove(&t->shaking);
    list_append(&t->worker->shaking, &t->shaking);
    /* servers wait for a whole record before they spend memory */
    return t->handshake = handshake_new(t->identity, t->client, NULL, 0, NULL);
}

static bool handshake_record(struct tunnel *t, const uint8_t *record, size_t size)
{
    const uint8_t *out;
    struct handshake *h = handshake_of(t);
    if (!h)
        return tunnel_out_of_memory(t);
    enum handshake_state state = handshake_step(h, record, size);
    size_t out_size = handshake_output(h, &out);
    if (out_size && state == HANDSHAKE_DONE)
        tunnel_send_first(t, out, out_size);
    else if (out_size)
        tunnel_send_raw(t, out, out_size);
    if (!tunnel_alive(t))
        return false;
    if (state == HANDSHAKE_FAILED) {
        COUNT(t->worker, handshakes_failed);
        if (h->reason == REASON_peer_abuse)
            COUNT(t->worker, abuse_handshake);
        if (h->reason == REASON_peer_cert_revoked)
            tunnel_count_revoked(t);
        tunnel_fail(t, h->reason, SILENTLY, h->detail);
        return false;
    }
    if (state == HANDSHAKE_DONE)
        tunnel_opened(t);
    return tunnel_alive(t);
}

/* ---- records */

static bool broken(struct tunnel *t, const char *detail)
{
    tunnel_fail(t, REASON_peer_protocol, SILENTLY, detail);
    return false;
}

static bool on_alert(struct tunnel *t, const uint8_t *alert, size_t size)
{
    char detail[64];
    if (size != 2)
        return broken(t, "malformed TLS alert");
    if (alert[1] == ALERT_USER_CANCELED)
        return true;
    if (alert[1] == ALERT_CLOSE_NOTIFY) {
        t->peer_closed = true;
        tunnel_fail(t, REASON_peer_reset, SILENTLY, "the peer closed the connection");
        return false;
    }
    snprintf(detail, sizeof detail, "the peer sent TLS alert %u", alert[1]);
    /* a server that does not like our certificate says so only after the client's handshake is done */
    tunnel_fail(t, t->greeted ? REASON_peer_reset : REASON_tls_handshake_failed, SILENTLY, detail);
    return false;
}

static bool on_key_update(struct tunnel *t, uint8_t request, bool at_end)
{
    if (!at_end || request > 1)
        return broken(t, "malformed KeyUpdate");
    if (!bucket_pour(&t->budgets.key_updates, LIMIT_KEY_UPDATES, 1, t->worker->now))
        return tunnel_abused(t, &t->worker->stats.abuse_key_updates, "too many KeyUpdate messages");
    if (!record_keys_update(&t->opening, false))
        return tunnel_out_of_memory(t);
    COUNT(t->worker, keys_updated);
    if (request)
        tunnel_update_key(t, false);
    return tunnel_alive(t);
}

/* Messages behind the handshake: KeyUpdate, and tickets, which are skipped. They may be cut anywhere. */
static bool on_message_bytes(struct tunnel *t, const uint8_t *p, size_t n)
{
    if (!n)
        return broken(t, "empty handshake record");
    while (n) {
        if (t->post_handshake.fill < 4) {
            t->post_handshake.header[t->post_handshake.fill++] = *p++;
            n--;
            if (t->post_handshake.fill < 4)
                continue;
            t->post_handshake.type = t->post_handshake.header[0];
            t->post_handshake.left = get_u24(t->post_handshake.header + 1);
            bool ticket = t->post_handshake.type == MESSAGE_NEW_SESSION_TICKET && t->client;
            bool update = t->post_handshake.type == MESSAGE_KEY_UPDATE && t->post_handshake.left == 1;
            if (!ticket && !update)
                return broken(t, "unexpected TLS handshake message");
            if (ticket && !bucket_pour(&t->budgets.glitches, LIMIT_GLITCHES, 1, t->worker->now))
                return tunnel_abused(t, &t->worker->stats.abuse_glitches, "too many session tickets");
            continue;
        }
        size_t k = n < t->post_handshake.left ? n : t->post_handshake.left;
        t->post_handshake.left -= (uint32_t)k;
        if (!t->post_handshake.left)
            t->post_handshake.fill = 0;
        if (t->post_handshake.type == MESSAGE_KEY_UPDATE && !on_key_update(t, *p, n == 1))
            return false;
        p += k;
        n -= k;
    }
    return true;
}

/* Tickets come first or, for us, not at all: after the first record OpenSSL's state is freed. */
static void take_ticket(struct tunnel *t, const uint8_t *raw, size_t size, bool ticket)
{
    if (ticket)
        handshake_ticket(t->ticketing, raw, size);
    handshake_free(t->ticketing);
    t->ticketing = NULL;
}

/* OpenSSL opens a ticket's record itself, so it needs it as it came. */
static ssize_t open_first_record(struct tunnel *t, uint8_t *record, size_t size, uint8_t *type)
{
    uint8_t raw[TICKET_RECORD_LARGEST];
    bool fits = size <= sizeof raw;
    if (fits)
        memcpy(raw, record, size);
    ssize_t n = record_open(&t->opening, record, size, type);
    take_ticket(t, raw, size,
                fits && n > 0 && *type == CONTENT_HANDSHAKE && record[RECORD_HEADER] == MESSAGE_NEW_SESSION_TICKET);
    return n;
}

static bool open_record(struct tunnel *t, uint8_t *record, size_t size)
{
    uint8_t type;
    if (record[0] != CONTENT_APPLICATION_DATA)
        return broken(t, "unprotected TLS record after the handshake");
    ssize_t n = t->ticketing ? open_first_record(t, record, size, &type) : record_open(&t->opening, record, size, &type);
    if (n < 0)
        return broken(t, "TLS record does not authenticate");
    COUNT(t->worker, records_in);
    if (type == CONTENT_APPLICATION_DATA) {
        if (n)
            return h2_input(t, record + RECORD_HEADER, (size_t)n);
        if (bucket_pour(&t->budgets.glitches, LIMIT_GLITCHES, 1, t->worker->now))
            return true;
        return tunnel_abused(t, &t->worker->stats.abuse_glitches, "too many empty TLS records");
    }
    if (type == CONTENT_HANDSHAKE)
        return on_message_bytes(t, record + RECORD_HEADER, (size_t)n);
    if (type == CONTENT_ALERT)
        return on_alert(t, record + RECORD_HEADER, (size_t)n);
    return broken(t, "unknown TLS content type");
}

static bool header_plausible(const uint8_t *record)
{
    return record[0] >= CONTENT_CHANGE_CIPHER_SPEC && record[0] <= CONTENT_APPLICATION_DATA && record[1] == 3 &&
           get_u16(record + 3) <= RECORD_LARGEST - RECORD_HEADER;
}

size_t tunnel_records(struct tunnel *t, uint8_t *bytes, size_t size)
{
    size_t used = 0;
    while (size - used >= RECORD_HEADER) {
        uint8_t *record = bytes + used;
        if (!header_plausible(record)) {
            tunnel_fail(t, t->state == TUNNEL_OPEN ? REASON_peer_protocol : REASON_tls_handshake_failed, SILENTLY,
                        "this is not TLS");
            return used;
        }
        size_t n = RECORD_HEADER + get_u16(record + 3);
        if (size - used < n)
            return used;
        bool going = t->state == TUNNEL_OPEN ? open_record(t, record, n) : handshake_record(t, record, n);
        if (!going)
            return used;
        used += n;
    }
    return used;
}
