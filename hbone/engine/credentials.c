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

/* What both roles share: parsed once, since parsing is most of what an identity costs. */
struct parsed {
    STACK_OF(X509) * chain; /* the leaf first */
    EVP_PKEY *key;
    X509_STORE *roots;
};

/* The certificates of a PEM text, NULL where there is none or one is broken. */
static STACK_OF(X509) * certificates(const char *pem, size_t size)
{
    BIO *bio = BIO_new_mem_buf(pem, (int)size);
    STACK_OF(X509) *all = sk_X509_new_null();
    bool good = bio && all;
    X509 *cert;
    while (good && (cert = PEM_read_bio_X509(bio, NULL, NULL, NULL)))
        if (!(good = sk_X509_push(all, cert) > 0))
            X509_free(cert);
    good = good && ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE; /* the end, and no broken one */
    BIO_free(bio);
    if (good && sk_X509_num(all) > 0)
        return all;
    sk_X509_pop_free(all, X509_free);
    return NULL;
}

static EVP_PKEY *private_key(const struct identity_material *m, X509 *leaf)
{
    BIO *bio = BIO_new_mem_buf(m->key, (int)m->key_size);
    EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL) : NULL;
    BIO_free(bio);
    if (key && X509_check_private_key(leaf, key) == 1)
        return key;
    EVP_PKEY_free(key);
    return NULL;
}

static X509_STORE *trusted(const struct identity_material *m)
{
    STACK_OF(X509) *all = certificates(m->roots, m->roots_size);
    X509_STORE *store = X509_STORE_new();
    bool good = all && store;
    for (int i = 0; good && i < sk_X509_num(all); i++)
        good = X509_STORE_add_cert(store, sk_X509_value(all, i)) == 1;
    sk_X509_pop_free(all, X509_free);
    if (good)
        return store;
    X509_STORE_free(store);
    return NULL;
}

static void parsed_free(struct parsed *p)
{
    sk_X509_pop_free(p->chain, X509_free);
    EVP_PKEY_free(p->key);
    X509_STORE_free(p->roots);
}

static bool parse(struct parsed *p, const struct identity_material *m, char *error, size_t size)
{
    ERR_clear_error();
    if (!(p->chain = certificates(m->chain, m->chain_size)))
        return refuse(error, size, "certificate chain does not load");
    if (!(p->key = private_key(m, sk_X509_value(p->chain, 0))))
        return refuse(error, size, "private key does not load or does not fit the leaf");
    if (!(p->roots = trusted(m)))
        return refuse(error, size, "root certificates do not load");
    ERR_clear_error(); /* the end of the PEM data leaves an entry */
    return true;
}

static bool use(SSL_CTX *ctx, const struct parsed *p)
{
    if (SSL_CTX_use_certificate(ctx, sk_X509_value(p->chain, 0)) != 1 ||
        SSL_CTX_use_PrivateKey(ctx, p->key) != 1)
        return false;
    for (int i = 1; i < sk_X509_num(p->chain); i++)
        if (SSL_CTX_add1_chain_cert(ctx, sk_X509_value(p->chain, i)) != 1)
            return false;
    SSL_CTX_set1_cert_store(ctx, p->roots);
    return true;
}

static SSL_CTX *context(const SSL_METHOD *method, const struct parsed *p, const struct identity_material *m,
                        char *error, size_t size)
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
    if (use(ctx, p))
        return ctx;
    refuse(error, size, "certificate and key cannot be used for TLS");
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

static bool load(struct identity *i, const struct identity_material *m, char *error, size_t size)
{
    struct parsed p = {0};
    bool good = parse(&p, m, error, size) &&
                (i->server = context(TLS_server_method(), &p, m, error, size)) &&
                (i->client = context(TLS_client_method(), &p, m, error, size));
    parsed_free(&p);
    return good;
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
    if (copy_trust_domains(i, m) && load(i, m, error, error_size)) {
        handshake_prepare(i->server, i->client);
        if (!m->max_sessions || !i->revocation || allow_resumption(i, m))
            return i;
    }
    identity_unref(i);
    return NULL;
}
