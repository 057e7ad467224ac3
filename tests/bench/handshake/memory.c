/* Mutual TLS 1.3 handshakes through memory, one after the other on one thread: what they cost without a network.
 *
 *   memory ours|library full|resumed CLIENT-CHAIN CLIENT-KEY SERVER-CHAIN SERVER-KEY ROOTS SECONDS
 *
 * `ours` is the engine's handshake.c from the first byte to the keys of the records, `library` the least that an
 * OpenSSL program can do: contexts made once, no ticket that is not used, no chain built for the own certificate. */
#define _GNU_SOURCE
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "credentials.h"
#include "handshake.h"
#include "identity.h"
#include "ipsec_mb.h"
#include "revocation.h"

enum { FILE_LARGEST = 1 << 16, FLIGHT_LARGEST = 1 << 16, HEADER = 5, SESSIONS = 16, LIFETIME = 3600, WARM_UP = 20 };

struct files {
    const char *client_chain, *client_key, *server_chain, *server_key, *roots;
};

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "memory: %s\n", what);
    ERR_print_errors_fp(stderr);
    exit(1);
}

static double seconds_of(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- the engine's */

struct ours {
    struct ipsec_mb *mb;
    struct revocation *revocation;
    struct identity *client, *server;
};

static char *contents(const char *path, size_t *size)
{
    FILE *file = fopen(path, "r");
    char *text = malloc(FILE_LARGEST);
    if (!file || !text)
        fail(path);
    *size = fread(text, 1, FILE_LARGEST, file);
    fclose(file);
    return text;
}

static struct identity *identity(const struct ours *o, const char *chain, const char *key, const char *roots, bool resume)
{
    static const char *const domains[] = {"cluster.local"};
    struct identity_material m = {.trust_domains = domains,
                                  .n_trust_domains = 1,
                                  .revocation = o->revocation,
                                  .max_sessions = resume ? SESSIONS : 0,
                                  .session_lifetime = LIFETIME};
    char error[200];
    m.chain = contents(chain, &m.chain_size);
    m.key = contents(key, &m.key_size);
    m.roots = contents(roots, &m.roots_size);
    struct identity *made = identity_new(1, &m, error, sizeof error);
    if (!made)
        fail(error);
    return made;
}

struct flight {
    uint8_t bytes[FLIGHT_LARGEST];
    size_t size;
};

static void answer(struct handshake *h, struct flight *to)
{
    const uint8_t *out;
    size_t size = handshake_output(h, &out);
    if (to->size + size > FLIGHT_LARGEST)
        fail("a flight is too long");
    memcpy(to->bytes + to->size, out, size);
    to->size += size;
}

/* Record by record, as the engine reads them. */
static enum handshake_state receive(struct handshake *h, const struct flight *from, struct flight *to)
{
    enum handshake_state state = HANDSHAKE_MORE;
    to->size = 0;
    for (size_t at = 0, size; at < from->size && state == HANDSHAKE_MORE; at += size) {
        size = HEADER + ((size_t)from->bytes[at + 3] << 8 | from->bytes[at + 4]);
        state = handshake_step(h, from->bytes + at, size);
        answer(h, to);
    }
    if (state == HANDSHAKE_FAILED)
        fail(h->detail);
    return state;
}

static void take_keys(const struct ours *o, struct handshake *h)
{
    struct record_keys sealing = {0}, opening = {0};
    if (!handshake_keys(h, o->mb, &sealing, &opening))
        fail("no keys");
    record_keys_free(&sealing);
    record_keys_free(&opening);
}

static bool ours_once(const struct ours *o)
{
    static const char server_name[] = "spiffe://cluster.local/ns/bench/sa/server";
    static struct flight there, back;
    struct session_place place = {0};
    struct handshake *client = handshake_new(o->client, true, server_name, 1, &place);
    struct handshake *server = handshake_new(o->server, false, NULL, 0, NULL);
    there.size = 0;
    if (!client || !server || handshake_step(client, NULL, 0) == HANDSHAKE_FAILED)
        fail("cannot begin");
    answer(client, &there);
    receive(server, &there, &back);
    if (receive(client, &back, &there) != HANDSHAKE_DONE || receive(server, &there, &back) != HANDSHAKE_DONE)
        fail("not done");
    take_keys(o, client);
    take_keys(o, server);
    if (back.size)
        handshake_ticket(client, back.bytes, back.size);
    bool resumed = server->resumed;
    handshake_free(client);
    handshake_free(server);
    return resumed;
}

/* ---- the library's */

struct library {
    SSL_CTX *client, *server;
    SSL_SESSION *session;
};

static SSL_CTX *context(const SSL_METHOD *method, const char *chain, const char *key, const char *roots, bool resume)
{
    static const unsigned char id[] = "bench";
    SSL_CTX *ctx = SSL_CTX_new(method);
    if (!ctx || SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) != 1 ||
        SSL_CTX_use_certificate_chain_file(ctx, chain) != 1 ||
        SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_load_verify_locations(ctx, roots, NULL) != 1)
        fail("context");
    SSL_CTX_set_mode(ctx, SSL_MODE_NO_AUTO_CHAIN);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_session_id_context(ctx, id, sizeof id);
    SSL_CTX_set_num_tickets(ctx, resume ? 1 : 0);
    return ctx;
}

static bool library_once(struct library *l, bool resume)
{
    SSL *client = SSL_new(l->client), *server = SSL_new(l->server);
    BIO *near, *far;
    char byte;
    int c = 0, s = 0;
    if (!client || !server || BIO_new_bio_pair(&near, FLIGHT_LARGEST, &far, FLIGHT_LARGEST) != 1)
        fail("cannot begin");
    SSL_set_bio(client, near, near);
    SSL_set_bio(server, far, far);
    if (l->session)
        SSL_set_session(client, l->session);
    SSL_set_connect_state(client);
    SSL_set_accept_state(server);
    for (int turn = 0; turn < 4 && (c != 1 || s != 1); turn++) {
        c = SSL_do_handshake(client);
        s = SSL_do_handshake(server);
    }
    if (c != 1 || s != 1)
        fail("not done");
    SSL_SESSION_free(l->session);
    l->session = NULL;
    if (resume) {
        (void)SSL_read(client, &byte, 1);
        l->session = SSL_get1_session(client);
    }
    bool resumed = SSL_session_reused(server) == 1;
    SSL_set_shutdown(client, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN); /* or the session would be a broken one */
    SSL_set_shutdown(server, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
    SSL_free(client);
    SSL_free(server);
    return resumed;
}

/* ---- either */

struct subject {
    bool is_ours, resume;
    struct ours ours;
    struct library library;
};

static void prepare(struct subject *s, const struct files *f)
{
    if (!s->is_ours) {
        s->library.client = context(TLS_client_method(), f->client_chain, f->client_key, f->roots, s->resume);
        s->library.server = context(TLS_server_method(), f->server_chain, f->server_key, f->roots, s->resume);
        return;
    }
    s->ours.mb = ipsec_mb_load();
    s->ours.revocation = revocation_new();
    s->ours.client = identity(&s->ours, f->client_chain, f->client_key, f->roots, s->resume);
    s->ours.server = identity(&s->ours, f->server_chain, f->server_key, f->roots, s->resume);
}

static bool once(struct subject *s)
{
    return s->is_ours ? ours_once(&s->ours) : library_once(&s->library, s->resume);
}

int main(int argc, char **argv)
{
    if (argc != 9)
        fail("ours|library full|resumed CLIENT-CHAIN CLIENT-KEY SERVER-CHAIN SERVER-KEY ROOTS SECONDS");
    struct subject s = {.is_ours = strcmp(argv[1], "ours") == 0, .resume = strcmp(argv[2], "resumed") == 0};
    prepare(&s, &(struct files){argv[3], argv[4], argv[5], argv[6], argv[7]});
    for (int i = 0; i < WARM_UP; i++)
        once(&s);
    double start = seconds_of(CLOCK_MONOTONIC), cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID), taken = 0;
    unsigned long count = 0;
    for (; taken < atof(argv[8]); count++, taken = seconds_of(CLOCK_MONOTONIC) - start)
        if (once(&s) != s.resume)
            fail(s.resume ? "a handshake was not resumed" : "a handshake was resumed");
    cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    printf("{\"openssl\": \"%s\", \"count\": %lu, \"cpu_us\": %.3f}\n", OpenSSL_version(OPENSSL_VERSION), count,
           cpu / (double)count * 1e6);
    return 0;
}
