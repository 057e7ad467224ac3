/* Two engines in one process, one that captures and one that serves, with their owner, certificates and an echo server:
 * what engine_check.c and memory_check.c have in common. */
#ifndef TWO_ENGINES_H
#define TWO_ENGINES_H

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine.h"
#include "hpack.h"

enum { PEM = 8192 };

static const char SERVER[] = "spiffe://cluster.local/ns/test/sa/server";
static const char CLIENT[] = "spiffe://cluster.local/ns/test/sa/client";

#define REQUIRE(x)                                                                                 \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #x);                      \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* ---- certificates */

struct signer {
    EVP_PKEY *key;
    X509 *cert;
};

static struct signer make_cert(const struct signer *issuer, const char *uri)
{
    struct signer s = {EVP_EC_gen("P-256"), X509_new()};
    char san[256];
    X509V3_CTX ctx;
    X509_set_version(s.cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(s.cert), uri ? (long)uri[0] + (long)strlen(uri) : 1);
    X509_gmtime_adj(X509_getm_notBefore(s.cert), -60);
    X509_gmtime_adj(X509_getm_notAfter(s.cert), 3600);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(s.cert), "CN", MBSTRING_ASC,
                               (const unsigned char *)(uri ? "leaf" : "root"), -1, -1, 0);
    X509_set_issuer_name(s.cert, X509_get_subject_name(issuer ? issuer->cert : s.cert));
    X509_set_pubkey(s.cert, s.key);
    X509V3_set_ctx(&ctx, issuer ? issuer->cert : s.cert, s.cert, NULL, NULL, 0);
    snprintf(san, sizeof san, "URI:%s", uri ? uri : "");
    const struct { int nid; const char *value; } extensions[] = {
        {NID_basic_constraints, uri ? "critical,CA:FALSE" : "critical,CA:TRUE"},
        {uri ? NID_subject_alt_name : NID_key_usage, uri ? san : "keyCertSign"},
        {uri ? NID_ext_key_usage : NID_undef, "serverAuth,clientAuth"},
    };
    for (int i = 0; i < 3; i++) {
        X509_EXTENSION *e =
            extensions[i].nid ? X509V3_EXT_conf_nid(NULL, &ctx, extensions[i].nid, extensions[i].value) : NULL;
        if (e)
            X509_add_ext(s.cert, e, -1);
        X509_EXTENSION_free(e);
    }
    REQUIRE(X509_sign(s.cert, issuer ? issuer->key : s.key, EVP_sha256()));
    return s;
}

static size_t to_pem(X509 *cert, EVP_PKEY *key, char out[PEM])
{
    BIO *bio = BIO_new(BIO_s_mem());
    if (cert)
        PEM_write_bio_X509(bio, cert);
    else
        PEM_write_bio_PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL);
    int n = BIO_read(bio, out, PEM);
    BIO_free(bio);
    return (size_t)n;
}

/* What an engine is given for an identity. */
struct pems {
    char chain[PEM], key[PEM], roots[PEM];
    size_t chain_size, key_size, roots_size;
};

static struct pems make_pems(const struct signer *root, const char *uri)
{
    struct pems made;
    struct signer leaf = make_cert(root, uri);
    made.chain_size = to_pem(leaf.cert, NULL, made.chain);
    made.key_size = to_pem(NULL, leaf.key, made.key);
    made.roots_size = to_pem(root->cert, NULL, made.roots);
    EVP_PKEY_free(leaf.key);
    X509_free(leaf.cert);
    return made;
}

static int set_identity(struct engine *e, const struct pems *p, char *error, size_t size)
{
    static const char *const domains[] = {"cluster.local"};
    return engine_set_identity(e, 1, p->chain, p->chain_size, p->key, p->key_size, p->roots, p->roots_size, domains, 1,
                               error, size);
}

static void give_identity(struct engine *e, const struct signer *root, const char *uri)
{
    char error[256];
    struct pems made = make_pems(root, uri);
    REQUIRE(set_identity(e, &made, error, sizeof error) == 0);
}

/* ---- sockets */

static int listen_on(struct address *where)
{
    struct sockaddr_storage s;
    address_parse(where, "127.0.0.1", 0);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    socklen_t size = address_to_sockaddr(where, &s);
    REQUIRE(bind(fd, (struct sockaddr *)&s, size) == 0 && listen(fd, 512) == 0);
    address_of_socket(where, NULL, fd);
    return fd;
}

static int dial_to(const struct address *where)
{
    struct sockaddr_storage s;
    socklen_t size = address_to_sockaddr(where, &s);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&s, size)) {
        close(fd);
        return -1;
    }
    return fd;
}

static uint8_t byte_at(uint64_t seed, uint64_t i)
{
    return (uint8_t)((i * 2654435761u + seed * 97) >> 11);
}

static void *echo(void *argument)
{
    int fd = (int)(intptr_t)argument;
    char bytes[65536];
    ssize_t n;
    while ((n = recv(fd, bytes, sizeof bytes, 0)) > 0)
        for (ssize_t sent = 0, k; sent < n; sent += k)
            if ((k = send(fd, bytes + sent, (size_t)(n - sent), MSG_NOSIGNAL)) <= 0)
                break;
    close(fd);
    return NULL;
}

static void *serve(void *argument)
{
    int listener = *(int *)argument, fd;
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        pthread_t t;
        REQUIRE(pthread_create(&t, NULL, echo, (void *)(intptr_t)fd) == 0);
        pthread_detach(t);
    }
    return NULL;
}

/* ---- the owner of both engines */

struct check {
    struct engine *out, *into;
    struct address app, hbone, tunnelled, plain;
    atomic_uint accepted, closed, established;
    atomic_uint endings[REASON_COUNT];
    atomic_uint seed;
    atomic_bool stop;
    unsigned cut_every; /* established flow; 0: none */
};

static void ask_for_tunnel(struct check *c, uint64_t token)
{
    static const char *const sans[] = {SERVER};
    uint8_t block[512];
    size_t size = 0;
    char authority[64];
    int n = snprintf(authority, sizeof authority, "127.0.0.1:%u", c->app.port);
    REQUIRE(hpack_encode_connect(block, &size, sizeof block, authority, (size_t)n));
    REQUIRE(hpack_encode_field(block, &size, sizeof block, "baggage", 7, "k=v", 3));
    struct engine_tunnel_request q = {.token = token, .destination = c->hbone, .identity = 1, .sans = sans,
                                      .n_sans = 1, .block = block, .block_size = size};
    REQUIRE(engine_connect_tunnel(c->out, &q) == 0);
}

static void connect_app(struct engine *e, uint64_t token, const struct address *app)
{
    uint8_t block[64];
    size_t size = 0;
    hpack_encode_status(block, &size, sizeof block, 200);
    REQUIRE(hpack_encode_field(block, &size, sizeof block, "baggage", 7, "k=v", 3));
    struct engine_tunnel_request q = {.token = token, .destination = *app, .block = block, .block_size = size};
    REQUIRE(engine_connect_plain(e, &q, NULL) == 0);
}

static void own(struct check *c, struct engine *e, const struct engine_event *event)
{
    switch (event->type) {
    case EVENT_ACCEPTED:
        atomic_fetch_add(&c->accepted, 1);
        if (event->local.port == c->plain.port)
            connect_app(e, event->token, &c->app);
        else
            ask_for_tunnel(c, event->token);
        break;
    case EVENT_CONNECT_REQUESTED:
        atomic_fetch_add(&c->accepted, 1);
        REQUIRE(strcmp(event->text, CLIENT) == 0);
        connect_app(e, event->token, &c->app);
        break;
    case EVENT_ESTABLISHED:
        if ((atomic_fetch_add(&c->established, 1) + 1) % (c->cut_every ? c->cut_every : -1u) == 0)
            engine_cut(e, event->token, REASON_policy_changed);
        break;
    case EVENT_CLOSED:
        atomic_fetch_add(&c->endings[event->reason], 1);
        atomic_fetch_add(&c->closed, 1);
        break;
    default:
        break;
    }
}

static void take(struct check *c, struct engine *e)
{
    struct engine_event *event = engine_take(e, 64);
    while (event) {
        struct engine_event *next = event->next;
        own(c, e, event);
        engine_event_free(event);
        event = next;
    }
    engine_flush(e);
}

static void *run_owner(void *argument)
{
    struct check *c = argument;
    struct pollfd fds[2] = {{engine_event_fd(c->out), POLLIN, 0}, {engine_event_fd(c->into), POLLIN, 0}};
    while (!atomic_load(&c->stop)) {
        struct engine_counter counters[64];
        poll(fds, 2, 20);
        take(c, c->out);
        take(c, c->into);
        engine_counters(c->out, counters, 64);
    }
    return NULL;
}

static void start_owner(struct check *c, pthread_t *owner)
{
    REQUIRE(pthread_create(owner, NULL, run_owner, c) == 0);
}

static uint64_t stat_of(struct engine *e, const char *name)
{
    struct engine_stat stats[128];
    size_t n = engine_stats(e, stats, 128);
    for (size_t i = 0; i < n; i++)
        if (strcmp(stats[i].name, name) == 0)
            return stats[i].value;
    REQUIRE(!"a statistic of this name");
    return 0;
}

#endif
