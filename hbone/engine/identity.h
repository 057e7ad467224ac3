/* Identities: a certificate chain, its key, the roots to believe and the trust domains to accept, as two
 * OpenSSL contexts. Immutable and counted; replacing an identity makes a new one. */
#ifndef HBONE_IDENTITY_H
#define HBONE_IDENTITY_H

#include <openssl/ssl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct identity {
    atomic_uint references;
    atomic_bool replaced; /* by another, or dropped: nobody will ask for this one again */
    uint32_t id;
    SSL_CTX *server, *client;
    char **trust_domains;
    size_t n_trust_domains;
    struct revocation *revocation; /* the engine's; outlives every identity. NULL: nothing is revoked */
    struct sessions *sessions;     /* NULL: every handshake is a full one */
};

struct identity *identity_ref(struct identity *i);
void identity_unref(struct identity *i);
bool identity_trusts(const struct identity *i, const char *trust_domain, size_t size);

#endif
