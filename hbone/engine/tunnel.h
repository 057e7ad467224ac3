/* mTLS HTTP/2 connections: making them, ending them, and the way out of them. */
#ifndef HBONE_TUNNEL_H
#define HBONE_TUNNEL_H

#include "state.h"

/* A connection to an HBONE listener was accepted. Takes the descriptor. */
void tunnel_accepted(struct worker *w, int fd, const struct listener *l, const struct address *peer);
/* Dials for the pool; NULL with -errno in `error`. The tunnel counts itself into the entry. */
struct tunnel *tunnel_dial(struct pool_entry *entry, int *error);

void tunnel_on_timer(struct tunnel *t);
/* Recomputes the tunnel's next deadline. */
void tunnel_rearm(struct tunnel *t);

/* Asks the peer for a sign of life, now. */
void tunnel_probe(struct tunnel *t);
/* It was asked, and has been silent for longer than patience lasts: nothing new is given to it until it speaks. */
bool tunnel_suspect(const struct tunnel *t);

/* The TLS handshake is done. */
void tunnel_opened(struct tunnel *t);
/* Frees the handshake's state; idempotent. */
void tunnel_handshake_over(struct tunnel *t);
/* Lets the last bytes out and waits for the peer's FIN: an immediate close may destroy them. */
void tunnel_linger(struct tunnel *t);
/* A flow's stream left; may end a tunnel that has no more to do. */
void tunnel_stream_left(struct tunnel *t);
/* Begins a graceful end: GOAWAY twice, streams finish. */
void tunnel_drain(struct tunnel *t);
/* The peer answered the first GOAWAY's PING: names the last stream. */
void tunnel_drain_last(struct tunnel *t);
/* The first of the peer's SETTINGS came: everything works. */
void tunnel_greeted(struct tunnel *t);

enum { SILENTLY = -1 };
/* Ends the tunnel and every flow on it. `code` goes out with GOAWAY unless SILENTLY. */
void tunnel_fail(struct tunnel *t, enum reason reason, int code, const char *detail);
/* As tunnel_fail, for a socket's error. */
void tunnel_socket_failed(struct tunnel *t, int error);
/* There was no memory for what it needs. Always false. */
bool tunnel_out_of_memory(struct tunnel *t);
/* An overdrawn budget: ENHANCE_YOUR_CALM. Always false. */
bool tunnel_abused(struct tunnel *t, _Atomic uint64_t *counter, const char *detail);
/* Ends the tunnel if a certificate of its peer has been revoked. */
void tunnel_check_revoked(struct tunnel *t);
/* Counts a peer that was turned away or cut for a revoked certificate. */
void tunnel_count_revoked(struct tunnel *t);
/* Ends a tunnel without streams in order. */
void tunnel_finish(struct tunnel *t);
void tunnel_free(struct tunnel *t);

static inline bool tunnel_alive(const struct tunnel *t)
{
    return t->state < TUNNEL_CLOSING;
}

/* Reads again in the next round although nothing new came: edge-triggered epoll would not say so. */
static inline void tunnel_read_again(struct tunnel *t)
{
    if (!list_linked(&t->again))
        list_append(&t->worker->again, &t->again);
}

/* ---- tunnel_write.c */
/* Room for `n` more bytes of frames; false when the socket is blocked or the tunnel ended. */
bool tunnel_room(struct tunnel *t, size_t n);
/* Gives the block back when nothing was put into it. */
void tunnel_release_empty(struct tunnel *t);
void tunnel_mark(struct tunnel *t);
/* A control frame. False when the tunnel ended over it, or is ending. */
bool tunnel_frame(struct tunnel *t, int type, int flags, uint32_t stream, const void *body, uint32_t size);
bool tunnel_headers(struct tunnel *t, uint32_t stream, const uint8_t *block, size_t size, bool end);
bool tunnel_reset_stream(struct tunnel *t, uint32_t stream, uint32_t code);
bool tunnel_preface(struct tunnel *t);
/* Seals and sends what is gathered. */
void tunnel_flush(struct tunnel *t);
/* Sends bytes as they are (handshake). */
void tunnel_send_raw(struct tunnel *t, const uint8_t *bytes, size_t size);
/* The same, but with the first frames, in one call. */
void tunnel_send_first(struct tunnel *t, const uint8_t *bytes, size_t size);
/* Answers a KeyUpdate, or begins one. */
void tunnel_update_key(struct tunnel *t, bool request);
void tunnel_close_notify(struct tunnel *t);
/* The socket is writable again. */
void tunnel_writable(struct tunnel *t);

#endif
