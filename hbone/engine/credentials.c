#include "credentials.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "handshake.h"
#include "session.h"

static const char SUITES[] = "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256";
/* Certificates compressed (RFC 8879) cost both sides more than they save, and are one more parser for what a peer
 * makes. The bits are those of OpenSSL 3.2, which may be loaded although we were built with an older one. */
#define COMPRESSION_SINCE 0x30200000UL
#define NO_COMPRESSION (UINT64_C(1) << 32 | UINT64_C(1) << 33)

enum { VERIFY_DEPTH = 8, CERTIFICATES_LARGEST = 64 << 10 };

static bool refuse(char *error, size_t size, const char *what)
{
    unsigned long code = ERR_peek_last_error();
    const char *why = code ? ERR_reason_error_string(code) : NULL;
    snprintf(error, size, "%s%s%s", what, why ? ": " : "", why ? why : "");
    ERR_clear_error();
    return false;
}

static BIO *memory(const char *pem, size_t size)
{
    return BIO_new_mem_buf(pem, (int)size);
}

static bool use_chain(SSL_CTX *ctx, const struct identity_material *m)
{
    BIO *bio = memory(m->chain, m->chain_size);
    unsigned n = 0;
    bool good = bio != NULL;
    X509 *cert;
    while (good && (cert = PEM_read_bio_X509(bio, NULL, NULL, NULL))) {
        good = n++ ? SSL_CTX_add1_chain_cert(ctx, cert) == 1 : SSL_CTX_use_certificate(ctx, cert) == 1;
        X509_free(cert);
    }
    BIO_free(bio);
    return good && n > 0;
}

static bool use_key(SSL_CTX *ctx, const struct identity_material *m)
{
    BIO *bio = memory(m->key, m->key_size);
    EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL) : NULL;
    bool good = key && SSL_CTX_use_PrivateKey(ctx, key) == 1 && SSL_CTX_check_private_key(ctx) == 1;
    EVP_PKEY_free(key);
    BIO_free(bio);
    return good;
}

static bool use_roots(SSL_CTX *ctx, const struct identity_material *m)
{
    BIO *bio = memory(m->roots, m->roots_size);
    X509_STORE *store = SSL_CTX_get_cert_store(ctx);
    unsigned n = 0;
    bool good = bio != NULL;
    X509 *cert;
    while (good && (cert = PEM_read_bio_X509(bio, NULL, NULL, NULL))) {
        good = X509_STORE_add_cert(store, cert) == 1;
        n++;
        X509_free(cert);
    }
    BIO_free(bio);
    return good && n > 0;
}

static SSL_CTX *context(const SSL_METHOD *method, const struct identity_material *m, char *error, size_t size)
{
    SSL_CTX *ctx = SSL_CTX_new(method);
    if (!ctx)
        return NULL;
    SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
    SSL_CTX_set_max_proto_version(ctx, TLS1_3_VERSION);
    SSL_CTX_set_ciphersuites(ctx, SUITES);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(ctx, 0);
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET); /* a session's number, where there are tickets at all */
    SSL_CTX_set_timeout(ctx, (long)m->session_lifetime);
    if (OpenSSL_version_num() >= COMPRESSION_SINCE)
        SSL_CTX_set_options(ctx, NO_COMPRESSION);
    SSL_CTX_set_mode(ctx, SSL_MODE_NO_AUTO_CHAIN);
    SSL_CTX_set_max_cert_list(ctx, CERTIFICATES_LARGEST);
    SSL_CTX_set_verify_depth(ctx, VERIFY_DEPTH);
    ERR_clear_error();
    bool good = (use_chain(ctx, m) || refuse(error, size, "certificate chain does not load")) &&
                (use_key(ctx, m) || refuse(error, size, "private key does not load or does not fit the leaf")) &&
                (use_roots(ctx, m) || refuse(error, size, "root certificates do not load"));
    ERR_clear_error(); /* the end of the PEM data leaves an entry */
    if (good)
        return ctx;
    SSL_CTX_free(ctx);
    return NULL;
}

/* Our chain up to a root of ours; NULL when it does not lead there (whoever believes us has other roots). Expiry is
 * left to those who use it. */
static struct peer_chain *own_chain(SSL_CTX *ctx, struct revocation *revocation)
{
    STACK_OF(X509) *more = NULL;
    X509_STORE_CTX *store = X509_STORE_CTX_new();
    struct peer_chain *chain = NULL;
    SSL_CTX_get0_chain_certs(ctx, &more);
    if (store &&
        X509_STORE_CTX_init(store, SSL_CTX_get_cert_store(ctx), SSL_CTX_get0_certificate(ctx), more) == 1) {
        X509_STORE_CTX_set_flags(store, X509_V_FLAG_NO_CHECK_TIME);
        if (X509_verify_cert(store) == 1)
            chain = peer_chain_new(revocation, X509_STORE_CTX_get0_chain(store));
    }
    X509_STORE_CTX_free(store);
    ERR_clear_error();
    return chain;
}

/* Without a chain of our own to judge, every handshake is a full one. False without memory. */
static bool allow_resumption(struct identity *i, const struct identity_material *m)
{
    struct peer_chain *own = own_chain(i->client, i->revocation);
    if (!own)
        return true;
    i->sessions = sessions_new(m->max_sessions, m->session_lifetime, own);
    peer_chain_free(own);
    if (i->sessions)
        handshake_prepare_resumption(i->server, i->client);
    return i->sessions != NULL;
}

static bool copy_trust_domains(struct identity *i, const struct identity_material *m)
{
    i->trust_domains = calloc(m->n_trust_domains + 1, sizeof *i->trust_domains);
    if (!i->trust_domains)
        return false;
    for (; i->n_trust_domains < m->n_trust_domains; i->n_trust_domains++)
        if (!(i->trust_domains[i->n_trust_domains] = strdup(m->trust_domains[i->n_trust_domains])))
            return false;
    return true;
}

struct identity *identity_new(uint32_t id, const struct identity_material *m, char *error, size_t error_size)
{
    struct identity *i = calloc(1, sizeof *i);
    snprintf(error, error_size, "out of memory");
    if (!i)
        return NULL;
    atomic_init(&i->references, 1);
    i->id = id;
    i->revocation = m->revocation;
    if (copy_trust_domains(i, m) && (i->server = context(TLS_server_method(), m, error, error_size)) &&
        (i->client = context(TLS_client_method(), m, error, error_size))) {
        handshake_prepare(i->server, i->client);
        if (!m->max_sessions || !i->revocation || allow_resumption(i, m))
            return i;
    }
    identity_unref(i);
    return NULL;
}
