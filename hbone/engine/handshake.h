/* TLS 1.3 handshakes: OpenSSL, fed record by record through memory, until its traffic secrets are known.
 * After that the connection's records are protected by record.c and OpenSSL's state is freed. */
#ifndef HBONE_HANDSHAKE_H
#define HBONE_HANDSHAKE_H

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "identity.h"
#include "reason.h"
#include "record.h"
#include "revocation.h"
#include "session.h"

enum handshake_state { HANDSHAKE_MORE, HANDSHAKE_DONE, HANDSHAKE_FAILED };

enum { HANDSHAKE_DETAIL = 120 };

struct handshake {
    SSL *ssl;
    BIO *in, *out;
    struct identity *identity;
    const char *sans; /* client: the acceptable peers, NUL-terminated one behind the other */
    size_t n_sans;
    bool client;
    uint32_t records, bytes; /* received */
    uint8_t secrets[2][SECRET_LARGEST]; /* client's, server's */
    size_t secret_size;
    enum reason reason;
    char detail[HANDSHAKE_DETAIL];
    char *peer_identity;
    struct peer_chain *peer_chain;
    struct session_place place; /* client */
    bool remembered; /* whom we talk to is what a session tells */
    bool resumed;
    uint64_t tickets; /* records that the server has sent with the keys of the connection */
};

extern const char peer_revoked_detail[];

/* Sets the contexts' callbacks. */
void handshake_prepare(SSL_CTX *server, SSL_CTX *client);
/* ... and those that keep and find sessions. */
void handshake_prepare_resumption(SSL_CTX *server, SSL_CTX *client);

/* `sans` must live as long as the handshake; `place` is a client's, to resume a session. NULL without memory. */
struct handshake *handshake_new(struct identity *identity, bool client, const char *sans, size_t n_sans,
                                const struct session_place *place);
void handshake_free(struct handshake *h);
/* Takes one whole record (none to begin as the client). On failure `reason` and `detail` say why. */
enum handshake_state handshake_step(struct handshake *h, const uint8_t *record, size_t size);
/* What must be sent; valid until the next step. */
size_t handshake_output(struct handshake *h, const uint8_t **bytes);
/* After HANDSHAKE_DONE: keys of both directions. */
bool handshake_keys(struct handshake *h, const struct ipsec_mb *mb, struct record_keys *sealing,
                    struct record_keys *opening);

/* As a client, behind HANDSHAKE_DONE: takes a record with a session ticket, as it came. */
void handshake_ticket(struct handshake *h, const uint8_t *record, size_t size);

#endif
