/* The engine's own structures and who may touch them.
 *
 * An engine has workers; each worker is one thread with its own epoll, flows, tunnels, pool and buffers, and
 * nobody else touches those. What crosses threads: the mailbox (commands in), the event queue (events out),
 * counters (atomic), and counted immutable things (netns, identities, listeners).
 *
 *   flow    what a token names: a plain client or a CONNECT stream, and where it goes
 *   plain   a TCP socket of a flow
 *   stream  the HTTP/2 stream of a flow, on a tunnel
 *   tunnel  an mTLS HTTP/2 connection; client (dialled, pooled) or server (accepted)
 */
#ifndef HBONE_STATE_H
#define HBONE_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "budget.h"
#include "buffer.h"
#include "engine.h"
#include "handshake.h"
#include "hpack.h"
#include "identity.h"
#include "list.h"
#include "machine.h"
#include "record.h"
#include "stats.h"
#include "timer.h"
#include "wire.h"

struct worker;
struct flow;
struct tunnel;

/* What epoll's data points at. */
enum source_kind { SOURCE_WAKE, SOURCE_ALARM, SOURCE_ACCEPTOR, SOURCE_PLAIN, SOURCE_TUNNEL };
struct source {
    enum source_kind kind;
    int fd; /* -1: closed */
};

enum timer_kind { TIMER_FLOW, TIMER_TUNNEL, TIMER_ACCEPT, TIMER_TRIM, TIMER_EVENTS };

/* ---- shared, counted */

struct netns {
    atomic_uint references;
    atomic_bool removed;
    int fd;
};

struct listener {
    atomic_uint references;
    atomic_bool closed;
    int fd;
    enum listener_kind kind;
    uint32_t tag, identity;
    struct netns *netns;
};

/* A worker's share in a listener. */
struct acceptor {
    struct source source;
    struct link link; /* worker.acceptors, or worker.dead_acceptors */
    struct worker *worker;
    struct listener *listener;
    bool dead;
};

/* ---- flows */

struct plain {
    struct source source;
    struct flow *flow;
    bool connected;
    bool readable; /* the kernel may hold bytes or EOF */
    bool hung_up;  /* FIN or RST has arrived */
    bool blocked;  /* the kernel took no more; EPOLLOUT will come */
    bool failed;   /* EPOLLERR was seen */
    bool got_end, sent_end; /* read EOF; shutdown(SHUT_WR) done */
    bool end_queued;        /* shut down when `out` is empty */
    struct byte_queue out;
};

struct stream {
    struct tunnel *tunnel;
    struct flow *chain; /* next in the tunnel's hash bucket */
    uint32_t id;        /* 0: not on a tunnel */
    int64_t send_window, recv_window;
    uint32_t recv_target; /* the window we keep open */
    uint32_t uncredited;  /* delivered, but not yet given back */
    uint8_t state;
    bool answered; /* the 200 was sent or received */
};

enum flow_shape {
    SHAPE_UNDECIDED,
    SHAPE_PLAIN,    /* client socket <-> onward socket */
    SHAPE_OUTBOUND, /* client socket <-> stream of a client tunnel */
    SHAPE_HBONE,    /* stream of a server tunnel <-> onward socket */
};

/* Where an outbound flow wants to go; immutable, owned by the flow. */
struct route {
    struct address destination;
    struct netns *netns;
    struct identity *identity; /* NULL: there is none (any more) */
    uint32_t mark;
    bool netns_gone;
    size_t n_sans, sans_size, block_size;
    char bytes[]; /* sans, then the header block */
};

/* Header block of the 200 that a flow's CONNECT will be answered with. */
struct answer {
    size_t size;
    uint8_t bytes[];
};

struct flow {
    struct worker *worker;
    uint64_t token;
    struct slot *slot;
    struct link link;  /* worker.flows, or worker.dead_flows */
    struct link queue; /* worker.ready, tunnel.starved, or pool_entry.waiting: one at a time */
    struct timer timer;
    uint64_t moved; /* bytes seen by the last progress check */
    uint32_t tag;
    uint16_t status; /* HTTP status sent or received */
    uint8_t state, shape, kind;
    uint8_t retries;
    bool established;
    bool hidden; /* the far half of a stream that goes into a stream: its owner does not know it */
    bool unknown; /* there was no memory to tell its owner of it */
    bool untold;  /* its end: `doomed` is the reason, and its memory becomes the event */
    uint16_t doomed; /* a reason: the other half ended so, and this one is about to */
    int doomed_error;
    struct flow *twin; /* the other half; NULL: there is none (any more) */
    bool starved; /* has bytes to send, and the peer does not take them */
    uint64_t born, asked; /* asked: when its CONNECT went out last */
    struct address remote; /* of the onward socket */
    struct plain client, onward;
    struct stream stream;
    struct route *route;
    struct answer *answer; /* NULL: nothing but the status, or given */
    struct pool_entry *entry; /* FLOW_POOLED */
    struct gather *gather;
    struct engine_event *admitted; /* of a kept verdict, while this worker holds it */
};

/* One entry of a worker's flow table. Never freed while the engine lives, so that counters can be read. */
struct slot {
    struct flow *flow;
    uint32_t index, generation;
    _Atomic uint64_t token; /* 0: free */
    _Atomic uint64_t from_client, to_client;
    uint64_t seen_token, seen; /* the counter reader's */
    struct slot *next_free;
};

/* DATA payloads of one flow, still lying in the worker's read buffer. */
enum { GATHER_PIECES = 64, GATHERS = 128 };
struct gather {
    struct flow *flow;
    int n;
    struct iovec pieces[GATHER_PIECES];
};

/* ---- tunnels */

enum { STREAM_BUCKETS = 64, FORGOTTEN_STREAMS = 64 };

/* The frame being read. */
struct frame_in {
    uint8_t header[FRAME_HEADER];
    uint8_t header_fill;
    uint8_t type, flags;
    bool pad_known, ignored;
    uint32_t length, left, stream;
    uint32_t pad;     /* bytes of padding at the end */
    struct flow *flow; /* DATA: who gets it */
    uint8_t *body;    /* a control frame cut in two by the end of a read */
    uint32_t fill;
};

struct pool_entry;

struct tunnel {
    struct source source;
    struct worker *worker;
    struct link link; /* worker.tunnels, or worker.dead_tunnels */
    struct link again; /* worker.again */
    struct link dirty; /* worker.dirty */
    struct link shaking; /* accepted: worker.silent, then worker.shaking */
    uint64_t id;
    uint8_t state, drain;
    bool client;
    bool greeted; /* the peer's SETTINGS have come: the connection is known to work */
    bool settings_acked, blocked, counted_handshake, opened;
    bool peer_closed; /* close_notify or EOF came */
    bool goaway_got, goaway_sent, fin_sent;
    bool ending, closing_told; /* the end has begun; everything was told of it */
    uint16_t untold; /* why it closed, when there was no memory to tell; its own becomes the event. 0: told */
    bool defective; /* was asked for a change of state that there is not: ends by its timer */
    bool socket_broken, hung_up, peer_eof, notify_due;
    bool in_order; /* ends because it has no more to do: what it said must arrive */
    uint32_t tag;
    struct address peer, local;
    struct netns *netns;
    struct identity *identity;
    struct handshake *handshake;
    struct handshake *ticketing; /* client: over, but the first record may bring a ticket */
    char *peer_identity;
    struct peer_chain *peer_chain; /* NULL before the handshake is done */
    struct timer timer;
    uint64_t phase_deadline, settings_deadline, drain_deadline, ping_due, ping_sent, idle_since, heard;
    uint64_t accepted;
    uint64_t probed; /* a CONNECT without an answer had a PING sent; 0: never */
    uint64_t expiry_check; /* when to look at the clock for the peer's certificate; 0: never */

    /* pool (client) */
    struct pool_entry *entry;
    struct link pooled;

    /* records */
    struct record_keys sealing, opening;
    struct chunk *partial; /* an incomplete record */
    struct { uint8_t header[4], fill, type; uint32_t left; } post_handshake;

    /* output */
    uint8_t *plain; /* a block: frames to be sealed */
    size_t plain_size;
    uint8_t *first; /* our last words of the handshake, which go out with the first frames */
    size_t first_size;
    uint8_t *sealed; /* what the socket did not take: a block, or a small allocation */
    size_t sealed_start, sealed_end;
    bool sealed_is_block;

    /* HTTP/2 */
    unsigned preface_left;
    struct frame_in in;
    uint8_t *block; /* header block continued over several frames */
    uint32_t block_size, block_stream;
    uint8_t block_end_stream, continuations;
    struct hpack_decoder hpack;
    bool size_update_due; /* tell the peer's decoder that we use no dynamic table */
    int64_t send_window, recv_window;
    uint32_t recv_target, uncredited;
    uint32_t peer_window, peer_frame, peer_streams;
    uint32_t next_id; /* client: the next to use; server: one past the largest seen */
    uint32_t last_id; /* with DRAIN_LAST */
    unsigned n_streams;
    size_t buffered; /* bytes waiting for slow plain sockets */
    struct flow *streams[STREAM_BUCKETS];
    uint32_t forgotten[FORGOTTEN_STREAMS]; /* streams we ended while the peer may still send */
    unsigned forgotten_at;
    struct link starved; /* flows with bytes to send, held back by the connection */
    struct budgets budgets;
};

/* ---- the pool */

enum { POOL_BUCKETS = 256 };

struct pool_entry {
    struct pool_entry *chain;
    struct worker *worker;
    uint64_t hash;
    struct route *key; /* a route of which only the key fields are used */
    struct link tunnels; /* most recently used first */
    struct link waiting; /* flows */
    struct link due;     /* in worker.due_pools: to be balanced before the round ends */
    unsigned n_tunnels, n_waiting;
    bool greeted;          /* by any tunnel yet */
    uint32_t peer_streams; /* the limit the peer told last */
};

/* ---- workers */

struct mailbox {
    pthread_mutex_t lock;
    struct command *head, **tail;
    atomic_bool filled;
    unsigned notices;
    bool signalled, closed;
};

enum { SLOTS_PER_PAGE = 1024, SLOT_PAGES = 1 << 14 };

struct flow_table {
    _Atomic(struct slot *) pages[SLOT_PAGES];
    _Atomic uint32_t used; /* slots ever handed out */
    struct slot *free;
};

enum { VERDICT_BUCKETS = 4096 };

/* Those that the engine gives by itself. */
struct verdicts {
    pthread_mutex_t lock;
    struct verdict *buckets[VERDICT_BUCKETS];
    _Atomic size_t n;
    uint64_t epoch, forgotten;
};

struct worker {
    struct engine *engine;
    unsigned index;
    pthread_t thread;
    bool started, stopping;
    int epoll, home_netns;
    struct netns *inside; /* the namespace the thread is in, counted; NULL: home */
    struct source wake;
    struct mailbox mailbox;
    uint64_t now; /* milliseconds, read once a round */
    struct timer_heap timers;
    struct source alarm;
    uint64_t alarm_at; /* what it is set to; UINT64_MAX: nothing */
    struct timer accept_timer, trim_timer;
    bool accept_paused;
    struct flow_table table;
    struct link flows, tunnels, acceptors;
    struct link dead_flows, dead_tunnels, dead_acceptors;
    struct link ready; /* flows */
    struct link again; /* tunnels with more to read */
    struct link dirty; /* tunnels with frames to flush before the round ends */
    struct link silent, shaking; /* tunnels before their first record, and in the handshake; oldest first */
    struct pool_entry *pool[POOL_BUCKETS];
    struct link due_pools;
    struct buffers buffers;
    uint8_t *read_buffer; /* READ_SIZE */
    uint8_t *seal_buffer; /* a block */
    struct gather *gathers;
    int n_gathers;
    struct header_list headers;
    struct engine_event *events, **events_tail; /* of this round */
    unsigned n_events;
    bool urgent_events;        /* the owner has to hear of them at once */
    struct timer events_timer; /* when it hears of the others */
    uint64_t told_second, told; /* failures and defects */
    uint64_t random; /* template.c's */
    _Atomic uint32_t load; /* flows and tunnels */
    struct stats stats;
    /* The one call from a lower layer into an upper one, at a tunnel's end: to whom its streams go (pool.h). */
    void (*tunnel_ended)(struct tunnel *t, struct pool_entry *entry, enum reason reason, int error);
};

struct event_queue {
    pthread_mutex_t lock;
    struct engine_event *head, **tail;
    atomic_uint size;
    bool signalled; /* since the owner took events last */
    int fd;
};

struct table {
    void **rows;
    size_t n;
};

struct engine {
    struct engine_config config;
    struct worker *workers;
    unsigned n_workers;
    pthread_mutex_t lock; /* the tables below, and stop */
    struct table netns, listeners;
    struct identity **identities;
    size_t n_identities;
    bool stopped;
    pthread_mutex_t counters_lock;
    struct event_queue events;
    struct verdicts verdicts;
    struct revocation *revocation;
    struct ipsec_mb *mb; /* NULL: OpenSSL protects records */
    atomic_uint n_flows, n_tunnels, n_handshakes;
    atomic_uint n_sockets[LISTENER_HBONE + 1]; /* accepted and open, by the kind of their listener */
    _Atomic uint64_t next_tunnel;
};

#endif
