/* The HBONE byte engine's public C interface.
 *
 * Worker threads own epoll, TLS 1.3, HTTP/2 CONNECT streams and plain sockets. The owner registers
 * listeners, network namespaces and identities, takes events, and gives each flow a verdict.
 * Every function may be called from any thread; none blocks on the network. Nothing here is global:
 * a process may run several engines.
 */
#ifndef HBONE_ENGINE_H
#define HBONE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "address.h"
#include "reason.h"
#include "revocation.h"

struct engine;

/* X(name, units in one owner's unit (1000: seconds kept as milliseconds), default, least, most) */
#define ENGINE_CONFIG(X)                                                                           \
    X(workers, 1, 2, 1, 64)                                                                        \
    X(max_flows, 1, 200000, 1, 1 << 24)                                                            \
    X(max_tunnels, 1, 50000, 1, 1 << 24)                                                           \
    X(max_handshakes, 1, 2000, 1, 1 << 20)                                                         \
    X(max_events, 1, 65536, 16, 1 << 24)                                                           \
    X(max_verdicts, 1, 10000, 0, 1 << 20)                                                          \
    X(max_sessions, 1, 0, 0, 1 << 16)                                                              \
    X(session_lifetime, 1, 3600, 1, 86400)                                                         \
    X(event_hold, 1000, 0, 0, 1)                                                                   \
    X(stream_window, 1, 1 << 20, 1024, 1 << 30)                                                    \
    X(stream_window_max, 1, 4 << 20, 1024, 1 << 30)                                                \
    X(connection_window, 1, 4 << 20, 65535, 1 << 30)                                               \
    X(connection_window_max, 1, 16 << 20, 65535, 1 << 30)                                          \
    X(max_frame_size, 1, 1 << 20, 16384, (1 << 24) - 1)                                            \
    X(max_header_list, 1, 16384, 1024, 65536)                                                      \
    X(tunnel_buffer_max, 1, 32 << 20, 65536, 1 << 30)                                              \
    X(stream_limit, 1, 200, 1, 100000)                                                             \
    X(pool_streams, 1, 100, 1, 100000)                                                             \
    X(pool_tunnels, 1, 256, 1, 100000)                                                             \
    X(pool_idle_timeout, 1000, 300, 0.01, 1e7)                                                     \
    X(connect_timeout, 1000, 10, 0.01, 1e6)                                                        \
    X(handshake_timeout, 1000, 10, 0.01, 1e6)                                                      \
    X(preface_timeout, 1000, 10, 0.01, 1e6)                                                        \
    X(settings_timeout, 1000, 10, 0.01, 1e6)                                                       \
    X(decision_timeout, 1000, 30, 0.01, 1e6)                                                       \
    X(response_timeout, 1000, 45, 0.01, 1e6)                                                       \
    X(answer_patience, 1000, 2.5, 0.01, 1e6)                                                       \
    X(half_close_timeout, 1000, 3600, 0.01, 1e7)                                                   \
    X(stall_timeout, 1000, 3600, 0.01, 1e7)                                                        \
    X(ping_interval, 1000, 10, 0.01, 1e6)                                                          \
    X(ping_timeout, 1000, 20, 0.01, 1e6)                                                           \
    X(close_linger, 1000, 1, 0.01, 60)                                                             \
    X(cut_expired, 1, 0, 0, 1)                                                                     \
    X(ipsec_mb, 1, 1, 0, 1)                                                                        \
    X(rekey_records, 1, 1 << 23, 2, 1 << 24)                                                       \
    X(tunnel_events, 1, 0, 0, 1)

struct engine_config {
#define X(name, unit, value, least, most) uint64_t name;
    ENGINE_CONFIG(X)
#undef X
};

enum listener_kind { LISTENER_OUTBOUND, LISTENER_INBOUND, LISTENER_HBONE };

enum event_type {
    EVENT_ACCEPTED,
    EVENT_CONNECT_REQUESTED,
    EVENT_ESTABLISHED,
    EVENT_CLOSED,
    EVENT_TUNNEL_FAILED,
    EVENT_TUNNEL_OPENED,
    EVENT_TUNNEL_CLOSED,
    EVENT_DEFECT,
    EVENT_ADMITTED,
    EVENT_FINISHED,
    EVENT_FORGOTTEN,
};

/* One event. Which fields mean something depends on the type, as in hbone/engine/events.py. `text` holds
 * `texts` NUL-terminated strings one behind the other:
 *   CONNECT_REQUESTED: peer identity, method, authority, then name, value, ...
 *   ESTABLISHED: peer identity ("" for plain TCP), then name, value, ...
 *   TUNNEL_FAILED, DEFECT: detail.   TUNNEL_OPENED: peer identity. */
struct engine_event {
    struct engine_event *next;
    enum event_type type;
    uint64_t token, tunnel;
    uint64_t at, ended; /* nanoseconds of CLOCK_MONOTONIC */
    uint64_t verdict;   /* ADMITTED, FINISHED: its number; FORGOTTEN: the last epoch that is over */
    struct flow *flow;  /* the worker's, until it hands the event over */
    uint64_t from_client, to_client;
    struct address peer, local;
    uint32_t tag;
    int error;
    uint16_t reason, status;
    uint8_t kind;
    bool inbound, established;
    unsigned texts;
    char text[];
};

enum { BLOCK_LARGEST = 16000 }; /* an encoded header block: fits the smallest SETTINGS_MAX_FRAME_SIZE */

struct engine_tunnel_request {
    uint64_t token;
    struct address destination;
    int netns;
    uint32_t identity;
    uint32_t mark;
    const char *const *sans; /* sorted, distinct */
    size_t n_sans;
    const uint8_t *block; /* encoded header block: hpack_encode_* */
    size_t block_size;
};

/* A verdict to be kept, and the key of the connections it is for; see verdict.h. */
struct engine_kept {
    uint64_t number, epoch;
    enum listener_kind kind;
    uint32_t tag;
    struct address local, peer;
    const char *identity, *authority; /* CONNECT */
    const char *fields;               /* its fields: name, value, ..., each NUL-terminated */
    unsigned n_fields;
    bool tunnel;
    struct engine_tunnel_request request; /* token unused; plain: destination, netns and mark */
    struct address source;                /* plain */
    const char *varying; /* the tunnel's header fields behind the block: see template.h */
    unsigned n_varying;  /* texts */
};

struct engine_counter {
    uint64_t token, from_client, to_client;
};

struct engine_stat {
    const char *name;
    uint64_t value;
};

void engine_config_defaults(struct engine_config *config);

/* NULL with errno when the system refuses something. */
struct engine *engine_start(const struct engine_config *config);
void engine_stop(struct engine *e); /* idempotent; events stay takeable */
void engine_free(struct engine *e); /* stops first */

/* Whether ipsec-mb protects TLS records; otherwise OpenSSL does. */
bool engine_uses_ipsec_mb(const struct engine *e);
int engine_event_fd(const struct engine *e);
struct engine_event *engine_take(struct engine *e, size_t limit); /* oldest first, linked by `next` */
void engine_event_free(struct engine_event *event);

/* Handles are > 0; -errno on failure. Netns 0 is the one each worker was started in. */
int engine_add_netns(struct engine *e, int fd);
void engine_remove_netns(struct engine *e, int netns);
int engine_listen(struct engine *e, int fd, enum listener_kind kind, int netns, uint32_t tag,
                  uint32_t identity);
void engine_unlisten(struct engine *e, int listener);

/* 0, or -1 with a one-line explanation in `error`. */
int engine_set_identity(struct engine *e, uint32_t identity, const char *chain, size_t chain_size,
                        const char *key, size_t key_size, const char *roots, size_t roots_size,
                        const char *const *trust_domains, size_t n_trust_domains, char *error,
                        size_t error_size);
/* Replaces the revocation lists of all identities; tunnels whose peer is revoked by them are cut. 0, or -1 with a
 * one-line explanation in `error`; the old lists are in force then. */
int engine_set_crls(struct engine *e, const struct crl_file *files, size_t n, char *error, size_t error_size);
void engine_drop_identity(struct engine *e, uint32_t identity);

/* Verdicts reach the workers with the next engine_flush. 0 or -ENOMEM. The request's identity and sans are not used
 * by engine_connect_plain; its block is what a CONNECT is answered with when it stands (size 0: 200 and no more). */
int engine_connect_plain(struct engine *e, const struct engine_tunnel_request *request, const struct address *source);
int engine_connect_tunnel(struct engine *e, const struct engine_tunnel_request *request);
int engine_refuse(struct engine *e, uint64_t token, unsigned reason, unsigned status);
void engine_flush(struct engine *e);

/* Lets the engine give a verdict by itself. 0, or -ESTALE: the epoch is over; -ENOSPC: there are max_verdicts;
 * -EEXIST: there is one; -EINVAL: such a connection has no key. */
int engine_keep(struct engine *e, const struct engine_kept *kept);
/* Forgets all kept verdicts. When it returns none of them is given any more. The epoch that begins. */
uint64_t engine_forget(struct engine *e);
uint64_t engine_epoch(struct engine *e);

int engine_cut(struct engine *e, uint64_t token, unsigned reason);
int engine_drain(struct engine *e, uint32_t tag);
int engine_drain_all(struct engine *e);

/* At most `room` counters of flows that changed since they were last returned; the number written. */
size_t engine_counters(struct engine *e, struct engine_counter *out, size_t room);
size_t engine_stats(struct engine *e, struct engine_stat *out, size_t room);

extern const char *const engine_reasons[REASON_COUNT];

#endif
