/* Two engines in one process, no Python: patterned traffic through plain and tunnelled flows, resets, cuts,
 * small windows, key updates, drain and a stop with live flows. For sanitizers:
 *
 *   gcc -std=gnu11 -D_GNU_SOURCE -g -O1 -fsanitize=address,undefined -fno-omit-frame-pointer -pthread \
 *       -Ihbone/engine tests/fuzz/engine_check.c \
 *       $(ls hbone/engine/*.c | grep -v /module) -o build/engine_check -lssl -lcrypto
 *   build/engine_check
 *
 * (or -fsanitize=thread). Exit status 0: every byte arrived, every token ended once, nothing leaked.
 */
#include "two_engines.h"

enum { FLOWS = 96, THREADS = 8 };

/* ---- clients */

struct sending {
    int fd;
    uint64_t seed, size;
    bool failed; /* the reset was told to send(); recv() then says EOF */
};

static void *send_pattern(void *argument)
{
    struct sending *s = argument;
    uint8_t bytes[20000];
    for (uint64_t i = 0; i < s->size;) {
        size_t n = s->size - i < sizeof bytes ? (size_t)(s->size - i) : sizeof bytes;
        for (size_t k = 0; k < n; k++)
            bytes[k] = byte_at(s->seed, i + k);
        ssize_t sent = send(s->fd, bytes, n, MSG_NOSIGNAL);
        if (sent <= 0) {
            s->failed = true;
            return NULL;
        }
        i += (uint64_t)sent;
    }
    shutdown(s->fd, SHUT_WR);
    return NULL;
}

/* Whole and in order, or ended by a reset (some flows are cut); never altered, never a short clean end. */
static void exchange(const struct address *entry, uint64_t seed)
{
    struct sending s = {.fd = dial_to(entry), .seed = seed, .size = seed * 653659 % 3000000};
    pthread_t sender;
    uint8_t bytes[65536];
    uint64_t i = 0;
    ssize_t n;
    if (s.fd < 0)
        return; /* cut at once */
    if (seed % 11 == 5) { /* gives up: a reset */
        struct linger now = {1, 0};
        setsockopt(s.fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        send(s.fd, "x", 1, MSG_NOSIGNAL);
        close(s.fd);
        return;
    }
    REQUIRE(pthread_create(&sender, NULL, send_pattern, &s) == 0);
    while ((n = recv(s.fd, bytes, sizeof bytes, 0)) > 0)
        for (ssize_t k = 0; k < n; k++, i++)
            REQUIRE(bytes[k] == byte_at(seed, i));
    pthread_join(sender, NULL);
    REQUIRE(n < 0 || s.failed || i == s.size);
    close(s.fd);
}

static void *run_client(void *argument)
{
    struct check *c = argument;
    unsigned seed;
    while ((seed = atomic_fetch_add(&c->seed, 1)) < FLOWS)
        exchange(seed % 3 ? &c->tunnelled : &c->plain, seed);
    return NULL;
}

/* ---- one whole life */

static struct engine *start(bool small)
{
    struct engine_config config;
    engine_config_defaults(&config);
    config.tunnel_events = 1;
    if (small) {
        config.stream_window = config.stream_window_max = 5000;
        config.pool_streams = 3;
    } else {
        config.rekey_records = 500;
    }
    struct engine *e = engine_start(&config);
    REQUIRE(e);
    return e;
}

static void run_check(const struct signer *root, bool small)
{
    struct check c = {.out = start(small), .into = start(small), .cut_every = 13};
    pthread_t owner, server, clients[THREADS];
    int app = listen_on(&c.app), fds[3] = {listen_on(&c.hbone), listen_on(&c.tunnelled), listen_on(&c.plain)};
    give_identity(c.into, root, SERVER);
    give_identity(c.out, root, CLIENT);
    REQUIRE(engine_listen(c.into, fds[0], LISTENER_HBONE, 0, 1, 1) > 0);
    REQUIRE(engine_listen(c.out, fds[1], LISTENER_OUTBOUND, 0, 2, 0) > 0);
    REQUIRE(engine_listen(c.out, fds[2], LISTENER_OUTBOUND, 0, 3, 0) > 0);
    REQUIRE(pthread_create(&server, NULL, serve, &app) == 0);
    start_owner(&c, &owner);
    for (int i = 0; i < THREADS; i++)
        REQUIRE(pthread_create(&clients[i], NULL, run_client, &c) == 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(clients[i], NULL);
    int idle = dial_to(&c.tunnelled), idle_plain = dial_to(&c.plain); /* live when the engines stop */
    give_identity(c.out, root, CLIENT);
    engine_drain(c.into, 1);
    usleep(100000);
    atomic_store(&c.stop, true);
    pthread_join(owner, NULL);
    engine_stop(c.out);
    engine_stop(c.into);
    take(&c, c.out);
    take(&c, c.into);
    for (int i = 0; i < 20; i++) {
        take(&c, c.out);
        take(&c, c.into);
    }
    fprintf(stderr, "%s windows: %u flows, %u ended, %u established\n", small ? "small" : "usual",
            atomic_load(&c.accepted), atomic_load(&c.closed), atomic_load(&c.established));
    REQUIRE(atomic_load(&c.accepted) == atomic_load(&c.closed));
    REQUIRE(stat_of(c.out, "defects") == 0 && stat_of(c.into, "defects") == 0);
    engine_free(c.out);
    engine_free(c.into);
    for (int i = 0; i < 3; i++)
        close(fds[i]);
    close(idle);
    close(idle_plain);
    shutdown(app, SHUT_RDWR);
    pthread_join(server, NULL);
    close(app);
    usleep(50000); /* echo threads see their sockets' end */
}

int main(void)
{
    struct signer root = make_cert(NULL, NULL);
    run_check(&root, false);
    run_check(&root, true);
    EVP_PKEY_free(root.key);
    X509_free(root.cert);
    return 0;
}
