/* What an owner does with an engine, from its start to its end; and a tunnel's whole life between two engines, both roles, again and again: dial, TLS handshake, CONNECT, octets both ways,
 * key updates, half-closes, close. Each time one allocation of the owner's or of a worker's fails: every one of the
 * engine's own, and every STRIDE-th of OpenSSL's (argument, default 41). A second argument, 0 to 2, runs one part only: the owner, tunnels, tunnels with sessions. Built as engine_check.c, with -Wl,--wrap= for each function below.
 *
 * Whatever fails ends one flow or tunnel for a reason, or none; an open connection through another tunnel of the same
 * engines goes on, every token ends once, nothing is left. */
#include <fcntl.h>
#include <openssl/crypto.h>
#include <sys/time.h>

#include "two_engines.h"

enum kind { OWN, OPENSSL };
enum { MESSAGE = 700, MESSAGES = 16, REKEY = 12, CANARY_EVERY = 16 /* lives; its key updates are on a budget */, PATIENCE = 300 /* s; also of the engines: a machine that is busy elsewhere is no lack of memory */, MOST_LIVES = 100000 };

static struct {
    atomic_bool armed;
    enum kind kind;
    unsigned long first;
    atomic_ulong made[2], failed;
} shortage;

/* ---- allocations */

/* Of the engine, that is: the test's own threads have the program's name. */
static bool on_worker_thread(void)
{
    static _Thread_local int known; /* 0: not yet */
    char name[16] = "";
    if (!known) {
        pthread_getname_np(pthread_self(), name, sizeof name);
        known = strcmp(name, "hbone") == 0 ? 1 : -1;
    }
    return known > 0;
}

/* Set while this thread plays an owner who runs out of memory. */
static _Thread_local bool owner_suffers;

static bool strikes(enum kind kind)
{
    if (!atomic_load(&shortage.armed) || !(owner_suffers || on_worker_thread()))
        return false;
    unsigned long n = atomic_fetch_add(&shortage.made[kind], 1);
    bool now = kind == shortage.kind && n == shortage.first;
    if (now)
        atomic_fetch_add(&shortage.failed, 1);
    return now;
}

#define WRAP(type, name, parameters, arguments)                                                    \
    type __real_##name parameters;                                                                 \
    type __wrap_##name parameters;                                                                 \
    type __wrap_##name parameters                                                                  \
    {                                                                                              \
        return strikes(OWN) ? NULL : __real_##name arguments;                                   \
    }

WRAP(void *, malloc, (size_t size), (size))
WRAP(void *, calloc, (size_t n, size_t size), (n, size))
WRAP(void *, realloc, (void *p, size_t size), (p, size))
WRAP(void *, aligned_alloc, (size_t alignment, size_t size), (alignment, size))
WRAP(char *, strdup, (const char *text), (text))
WRAP(char *, strndup, (const char *text, size_t size), (text, size))

static void *openssl_malloc(size_t size, const char *file, int line)
{
    (void)file, (void)line;
    return strikes(OPENSSL) ? NULL : __real_malloc(size);
}

static void *openssl_realloc(void *p, size_t size, const char *file, int line)
{
    (void)file, (void)line;
    return strikes(OPENSSL) ? NULL : __real_realloc(p, size);
}

static void openssl_free(void *p, const char *file, int line)
{
    (void)file, (void)line;
    free(p);
}

/* ---- connections */

static int dial_patiently(const struct address *where)
{
    struct timeval patience = {PATIENCE, 0};
    int fd = dial_to(where);
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return fd;
}

/* False when the connection ended; a connection that does neither hangs. */
static bool exchange(int fd, uint64_t seed)
{
    uint8_t sent[MESSAGE], got[MESSAGE];
    for (size_t i = 0; i < MESSAGE; i++)
        sent[i] = byte_at(seed, i);
    if (send(fd, sent, MESSAGE, MSG_NOSIGNAL) != MESSAGE)
        return false;
    for (size_t n = 0; n < MESSAGE;) {
        ssize_t k = recv(fd, got + n, MESSAGE - n, 0);
        REQUIRE(k >= 0 || errno != EAGAIN);
        if (k <= 0)
            return false;
        n += (size_t)k;
    }
    REQUIRE(memcmp(sent, got, MESSAGE) == 0);
    return true;
}

/* True when it did all it is meant to. */
static bool live(const struct address *where)
{
    char rest;
    int fd = dial_patiently(where);
    bool whole = fd >= 0;
    for (uint64_t i = 0; whole && i < MESSAGES; i++)
        whole = exchange(fd, i);
    if (whole) {
        shutdown(fd, SHUT_WR);
        ssize_t n = recv(fd, &rest, 1, 0);
        REQUIRE(n == 0 || (n < 0 && errno != EAGAIN));
        whole = n == 0;
    }
    if (fd >= 0)
        close(fd);
    return whole;
}

/* ---- the account */

/* Only the canary is left, on both engines. */
static bool quiet(struct check *c)
{
    struct engine *both[] = {c->out, c->into};
    for (int i = 0; i < 2; i++)
        if (stat_of(both[i], "flows_live") != 1 || stat_of(both[i], "tunnels_live") != 1 ||
            stat_of(both[i], "handshakes_live") != 0 || stat_of(both[i], "events_waiting") != 0)
            return false;
    return atomic_load(&c->accepted) == atomic_load(&c->closed) + 2;
}

static void print_endings(struct check *c)
{
    for (int reason = 0; reason < REASON_COUNT; reason++)
        if (atomic_load(&c->endings[reason]))
            fprintf(stderr, "  %s %u", engine_reasons[reason], atomic_load(&c->endings[reason]));
    fprintf(stderr, "\n");
}

static void print_account(struct check *c)
{
    static const char *const names[] = {"flows_live", "tunnels_live", "handshakes_live", "events_waiting"};
    fprintf(stderr, "allocation %lu of %s; accepted %u, closed %u", shortage.first,
            shortage.kind == OWN ? "the engine" : "OpenSSL", atomic_load(&c->accepted), atomic_load(&c->closed));
    for (int i = 0; i < 4; i++)
        fprintf(stderr, ", %s %lu %lu", names[i], (unsigned long)stat_of(c->out, names[i]),
                (unsigned long)stat_of(c->into, names[i]));
    print_endings(c);
}

static void settle(struct check *c)
{
    for (int i = 0; !quiet(c); i++) {
        if (i == PATIENCE * 1000) {
            print_account(c);
            REQUIRE(!"quiet again");
        }
        usleep(1000);
    }
}

static unsigned refusals(struct check *c)
{
    unsigned n = 0;
    for (int reason = REASON_ok + 1; reason < REASON_COUNT; reason++)
        n += atomic_load(&c->endings[reason]);
    return n;
}

/* Nothing goes on any more that the canary was the cause of. */
static void rest(struct check *c)
{
    uint64_t loops, before;
    do {
        before = stat_of(c->out, "loops") + stat_of(c->into, "loops");
        usleep(2000);
        loops = stat_of(c->out, "loops") + stat_of(c->into, "loops");
    } while (loops != before);
}

/* What is counted although nobody can be told of it. */
static uint64_t shed(struct check *c)
{
    return stat_of(c->out, "shed_memory") + stat_of(c->into, "shed_memory") + stat_of(c->out, "tunnel_failures") +
           stat_of(c->into, "tunnel_failures");
}

/* ---- an owner without memory */

static void take_all(struct engine *e)
{
    struct engine_event *event = engine_take(e, 1000), *next;
    for (; event; event = next) {
        next = event->next;
        engine_event_free(event);
    }
}

static void own_one(const struct pems *pems)
{
    struct engine_config config;
    struct address where;
    char error[256];
    engine_config_defaults(&config);
    config.workers = 2;
    int fd = listen_on(&where), home = open("/proc/self/ns/net", O_RDONLY);
    owner_suffers = true;
    struct engine *e = engine_start(&config);
    if (e) {
        int netns = engine_add_netns(e, home);
        bool known = set_identity(e, pems, error, sizeof error) == 0;
        REQUIRE(known || *error);
        int listener = engine_listen(e, fd, LISTENER_HBONE, netns > 0 ? netns : 0, 1, 1);
        REQUIRE(listener > 0 || listener == -ENOMEM);
        engine_refuse(e, 1, REASON_policy_denied, 401);
        engine_cut(e, 1, REASON_policy_changed);
        if (netns > 0)
            engine_remove_netns(e, netns);
        engine_drain(e, 1);
        if (listener > 0)
            engine_unlisten(e, listener);
        engine_drop_identity(e, 1);
        engine_stop(e);
        take_all(e);
        engine_free(e);
    }
    owner_suffers = false;
    close(home);
    close(fd);
}

static void sweep_owner(const struct signer *root, enum kind kind, unsigned long stride)
{
    struct pems pems = make_pems(root, SERVER);
    unsigned long first = 0, lives = 0;
    do {
        shortage.kind = kind;
        shortage.first = first;
        atomic_store(&shortage.made[kind], 0);
        atomic_store(&shortage.failed, 0);
        atomic_store(&shortage.armed, true);
        own_one(&pems);
        atomic_store(&shortage.armed, false);
        lives++;
        first += stride;
    } while (atomic_load(&shortage.failed));
    REQUIRE(lives > 10);
    fprintf(stderr, "owner, %s: %lu lives\n", kind == OWN ? "engine" : "OpenSSL", lives);
}

/* ---- sweeps */

struct tally {
    unsigned long lives, whole;
};

/* False when there was no such allocation any more. */
static bool one_life(struct check *c, enum kind kind, unsigned long first, int canary, struct tally *tally)
{
    unsigned before = refusals(c);
    uint64_t shed_before = shed(c);
    rest(c);
    shortage.kind = kind;
    shortage.first = first;
    atomic_store(&shortage.made[kind], 0);
    atomic_store(&shortage.failed, 0);
    atomic_store(&shortage.armed, true);
    bool whole = live(&c->tunnelled);
    settle(c);
    atomic_store(&shortage.armed, false);
    if (tally->lives % CANARY_EVERY == 0 && !exchange(canary, first)) {
        print_account(c);
        REQUIRE(!"the canary lives");
    }
    REQUIRE(whole || atomic_load(&shortage.failed));
    REQUIRE(whole || refusals(c) > before || shed(c) > shed_before);
    tally->lives++;
    tally->whole += whole;
    return atomic_load(&shortage.failed) > 0;
}

static void sweep(struct check *c, enum kind kind, unsigned long stride, int canary)
{
    struct tally tally = {0};
    unsigned long first = 0;
    while (first < MOST_LIVES && one_life(c, kind, first, canary, &tally))
        first += stride;
    REQUIRE(tally.lives > 10);
    fprintf(stderr, "%s: %lu lives, %lu came through all the same\n", kind == OWN ? "engine" : "OpenSSL", tally.lives,
            tally.whole);
}

static struct engine *start(unsigned sessions)
{
    struct engine_config config;
    engine_config_defaults(&config);
    config.workers = 1;
    config.max_sessions = sessions;
    config.rekey_records = REKEY;
    config.pool_idle_timeout = 10;
    config.close_linger = 100;
    config.connect_timeout = config.handshake_timeout = config.preface_timeout = config.settings_timeout =
        config.decision_timeout = config.response_timeout = config.answer_patience = config.ping_timeout = PATIENCE * 1000;
    config.tunnel_events = 1;
    struct engine *e = engine_start(&config);
    REQUIRE(e);
    return e;
}

static void run_check(const struct signer *root, unsigned sessions, unsigned long stride)
{
    struct check c = {.out = start(sessions), .into = start(sessions)};
    struct address elsewhere, usual;
    pthread_t owner, server;
    int app = listen_on(&c.app), fds[3] = {listen_on(&usual), listen_on(&elsewhere), listen_on(&c.tunnelled)};
    give_identity(c.into, root, SERVER);
    give_identity(c.out, root, CLIENT);
    REQUIRE(engine_listen(c.into, fds[0], LISTENER_HBONE, 0, 1, 1) > 0);
    REQUIRE(engine_listen(c.into, fds[1], LISTENER_HBONE, 0, 1, 1) > 0);
    REQUIRE(engine_listen(c.out, fds[2], LISTENER_OUTBOUND, 0, 2, 0) > 0);
    c.hbone = elsewhere; /* the canary has a tunnel of its own */
    REQUIRE(pthread_create(&server, NULL, serve, &app) == 0);
    start_owner(&c, &owner);
    int canary = dial_patiently(&c.tunnelled);
    REQUIRE(canary >= 0 && exchange(canary, 0));
    c.hbone = usual;
    REQUIRE(live(&c.tunnelled));
    settle(&c);
    sweep(&c, OWN, 1, canary);
    sweep(&c, OPENSSL, stride, canary);
    print_endings(&c);
    close(canary);
    atomic_store(&c.stop, true);
    pthread_join(owner, NULL);
    engine_free(c.out);
    engine_free(c.into);
    for (int i = 0; i < 3; i++)
        close(fds[i]);
    shutdown(app, SHUT_RDWR);
    pthread_join(server, NULL);
    close(app);
    usleep(50000); /* echo threads see their sockets' end */
}

int main(int argc, char **argv)
{
    REQUIRE(CRYPTO_set_mem_functions(openssl_malloc, openssl_realloc, openssl_free) == 1);
    unsigned long stride = argc > 1 ? strtoul(argv[1], NULL, 10) : 41;
    REQUIRE(stride > 0);
    struct signer root = make_cert(NULL, NULL);
    int only = argc > 2 ? atoi(argv[2]) : -1;
    if (only < 0 || only == 0) {
        sweep_owner(&root, OWN, 1);
        sweep_owner(&root, OPENSSL, stride);
    }
    if (only < 0 || only == 1)
        run_check(&root, 0, stride);
    if (only < 0 || only == 2)
        run_check(&root, 8, stride);
    EVP_PKEY_free(root.key);
    X509_free(root.cert);
    return 0;
}
