/* TLS 1.3 resumption: sessions of one identity, in both roles, kept in memory only.
 *
 * A session belongs to an `identity`: another certificate, key, root or trust domain of ours is another identity, and
 * begins with none. A session remembers whom its full handshake proved: name and certificate chain. It is used once.
 * When it is, neither that chain nor our own may have expired or be revoked by the lists of today, and the name must be
 * one that is expected today; otherwise the handshake is a full one, which judges anew. So it is when the peer last
 * showed longer ago than `lifetime` that it holds its key, however often it resumed since. Keys are always agreed anew
 * as well (psk_dhe_ke only; no early data). Servers keep sessions themselves: a client holds only a number. */
#ifndef HBONE_SESSION_H
#define HBONE_SESSION_H

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stdint.h>

#include "address.h"
#include "revocation.h"

struct sessions;

/* Whom a session is with, as its client knows it. */
struct session_place {
    struct address destination;
    const void *netns; /* only compared */
};

/* Room for `most` sessions in each role; the oldest make room. `lifetime` in seconds since the full handshake. `own` is
 * our chain. NULL without memory. */
struct sessions *sessions_new(size_t most, int64_t lifetime, struct peer_chain *own);
void sessions_free(struct sessions *s);

/* What a session proves; the caller owns both. */
struct session_peer {
    char *identity;
    struct peer_chain *chain;
};

/* Takes the reference of the session over, if true. `peer` is copied. */
bool session_keep_served(struct sessions *s, SSL_SESSION *session, const struct session_peer *peer);
bool session_keep_dialled(struct sessions *s, SSL_SESSION *session, const struct session_peer *peer,
                          const struct session_place *place);
/* A session that may be used now, and whom it proves: both are the caller's, and gone from here. NULL: none. */
SSL_SESSION *session_served(struct sessions *s, const uint8_t *id, size_t size, struct session_peer *peer);
SSL_SESSION *session_dialled(struct sessions *s, const struct session_place *place, struct session_peer *peer);
void session_drop_dialled(struct sessions *s, const struct session_place *place);
void session_peer_free(struct session_peer *peer);

#endif
