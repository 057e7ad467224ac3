/* replaces: worker; wraps: dial handshake_keys */
/* The engine from TLS records inwards: one worker without its thread, whose rounds, clock, sockets and owner
 * are played by the input. Sockets are socketpairs; the handshake is left out (both sides know the secrets).
 *
 * An input is one octet (role and manner), then operations, each an octet and its arguments. After every
 * operation the worker makes one round. In the end everything is torn down and must be gone. What the
 * engine sends must open as records and parse as frames. */
#include "worker.c"

#include <sys/socket.h>

#include "flow_verdict.h"
#include "identity.h"
#include "shortage.h"

enum { APPS = 64, SECRET = 7, CLOCK_STEP = 50, TAG = 1, FRAMES_LIMIT = 1 << 20 };

enum operation {
    OP_DATA,    /* u16 size, octets: one record of application data */
    OP_RECORD,  /* type, u16 size, octets: one record of any type */
    OP_RAW,     /* u16 size, octets: not sealed */
    OP_TIME,    /* u8: the clock advances */
    OP_PEER,    /* the peer reads what there is */
    OP_WRITE,   /* u8 app, u8 size / 256: an application writes */
    OP_READ,    /* u8 app */
    OP_END,     /* u8 app: FIN */
    OP_CLOSE,   /* u8 app */
    OP_VERDICT, /* u8: what the owner says to the oldest question */
    OP_CONNECT, /* an application connects (client role) */
    OP_DRAIN,
    OP_FIN,     /* the peer's */
    OP_CUT,     /* u8: a live flow */
    OP_ROUND,
    OPERATIONS
};

static struct {
    struct engine engine;
    struct worker worker;
    struct identity identity, *identities[1];
    struct listener hbone, outbound;
    bool ready;
} world;

static int apps[APPS]; /* the far ends of plain sockets */
static unsigned n_apps;
static int peer = -1; /* the far end of the tunnel */
static bool client_role, near_last_id, peer_broken, peer_fin;
static struct record_keys peer_sealing, peer_opening;
static uint8_t inbox[1 << 20];
static size_t inbox_size, frames_at;
static struct engine_event *asked[256];
static unsigned n_asked;
static uint64_t tokens[256];
static unsigned n_tokens;
static unsigned long n_begun, n_ended; /* of the flows that the owner heard of */

static void require(bool holds)
{
    if (!holds)
        abort();
}

/* ---- what the engine meets instead of the network */

int __wrap_dial(struct worker *w, const struct address *destination, struct netns *netns,
                const struct address *source, uint32_t mark);
bool __wrap_handshake_keys(struct handshake *h, const struct ipsec_mb *mb, struct record_keys *sealing,
                           struct record_keys *opening);

static int pair(int *far)
{
    int fds[2], small = 8192;
    require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
    setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    *far = fds[1];
    return fds[0];
}

static int new_app(void)
{
    if (n_apps == APPS)
        return -EMFILE;
    return pair(&apps[n_apps++]);
}

/* Port 1 is refused; port 15008 is the peer's; everything else an application's. */
int __wrap_dial(struct worker *w, const struct address *destination, struct netns *netns,
                const struct address *source, uint32_t mark)
{
    (void)w, (void)netns, (void)source, (void)mark;
    if (destination->port == 1)
        return -ECONNREFUSED;
    if (destination->port != 15008)
        return new_app();
    return peer < 0 ? pair(&peer) : new_app(); /* a second tunnel leads nowhere */
}

bool __wrap_handshake_keys(struct handshake *h, const struct ipsec_mb *mb, struct record_keys *sealing,
                           struct record_keys *opening)
{
    uint8_t ours[SECRET_LARGEST] = {SECRET}, theirs[SECRET_LARGEST] = {SECRET + 1};
    (void)h;
    (void)mb;
    bool made = record_keys_init(sealing, NULL, SUITE_AES_128_GCM_SHA256, ours, true) &&
                record_keys_init(opening, NULL, SUITE_AES_128_GCM_SHA256, theirs, false);
    bool turn = shortage_engine(false);
    require(record_keys_init(&peer_sealing, NULL, SUITE_AES_128_GCM_SHA256, theirs, true) &&
            record_keys_init(&peer_opening, NULL, SUITE_AES_128_GCM_SHA256, ours, false));
    shortage_engine(turn);
    return made;
}

static void set_up(void)
{
    struct engine *e = &world.engine;
    engine_config_defaults(&e->config);
    e->config.stream_window = 2048;
    e->config.stream_window_max = 8192;
    e->config.connection_window = 65535;
    e->config.connection_window_max = 1 << 17;
    e->config.max_frame_size = 16384;
    e->config.stream_limit = 20;
    e->config.pool_streams = 4;
    e->config.tunnel_buffer_max = 65536;
    e->config.rekey_records = 64;
    e->config.decision_timeout = 3000;
    e->config.stall_timeout = 4000;
    e->config.half_close_timeout = 5000;
    e->config.tunnel_events = 1;
    e->workers = &world.worker;
    e->n_workers = 1;
    pthread_mutex_init(&e->lock, NULL);
    pthread_mutex_init(&e->counters_lock, NULL);
    world.identity.references = 1000;
    world.identity.id = 1;
    world.identity.server = SSL_CTX_new(TLS_server_method());
    world.identity.client = SSL_CTX_new(TLS_client_method());
    world.identities[0] = &world.identity;
    e->identities = world.identities;
    e->n_identities = 1;
    world.hbone = (struct listener){.references = 1000, .fd = -1, .kind = LISTENER_HBONE, .tag = TAG, .identity = 1};
    world.outbound = (struct listener){.references = 1000, .fd = -1, .kind = LISTENER_OUTBOUND, .tag = TAG};
    require(event_queue_init(&e->events));
    mailbox_init(&world.worker.mailbox);
    require(worker_init(&world.worker, e, 0) == 0);
    world.ready = true;
}

/* ---- the peer */

static void check_frames(const uint8_t *bytes, size_t size)
{
    static uint8_t frames[FRAMES_LIMIT];
    if (frames_at + size > sizeof frames)
        return;
    memcpy(frames + frames_at, bytes, size);
    frames_at += size;
    size_t at = 0;
    while (frames_at - at >= FRAME_HEADER) {
        uint8_t *f = frames + at;
        uint32_t length = get_u24(f), stream = get_u32(f + 5);
        if (client_role && !memcmp(f, CLIENT_PREFACE, FRAME_HEADER)) {
            at += CLIENT_PREFACE_SIZE;
            continue;
        }
        require(f[3] <= FRAME_CONTINUATION && f[3] != FRAME_PUSH_PROMISE && f[3] != FRAME_PRIORITY);
        require(stream <= STREAM_ID_LARGEST && (stream == 0 || stream % 2 == 1));
        bool on_connection = f[3] == FRAME_SETTINGS || f[3] == FRAME_PING || f[3] == FRAME_GOAWAY;
        require(f[3] == FRAME_WINDOW_UPDATE || on_connection == (stream == 0));
        if (frames_at - at < FRAME_HEADER + length)
            break;
        if (f[3] == FRAME_WINDOW_UPDATE)
            require(length == 4 && get_u32(f + 9) > 0 && get_u32(f + 9) <= STREAM_ID_LARGEST);
        at += FRAME_HEADER + length;
    }
    frames_at -= at;
    memmove(frames, frames + at, frames_at);
}

static void take_record(uint8_t *record, size_t size)
{
    uint8_t type;
    ssize_t n = record_open(&peer_opening, record, size, &type);
    require(n >= 0);
    if (type == CONTENT_APPLICATION_DATA)
        check_frames(record + 5, (size_t)n);
    else if (type == CONTENT_HANDSHAKE)
        require(n == 5 && record[5] == 24 && record_keys_update(&peer_opening, false));
    else
        require(type == CONTENT_ALERT && n == 2);
}

static void peer_reads(void)
{
    ssize_t n;
    if (peer < 0 || !peer_opening.aead.cipher)
        return;
    while ((n = read(peer, inbox + inbox_size, sizeof inbox - inbox_size)) > 0) {
        size_t at = 0;
        inbox_size += (size_t)n;
        while (inbox_size - at >= 5) {
            size_t size = 5 + get_u16(inbox + at + 3);
            if (inbox_size - at < size)
                break;
            if (inbox[at] == CONTENT_APPLICATION_DATA)
                take_record(inbox + at, size);
            at += size;
        }
        inbox_size -= at;
        memmove(inbox, inbox + at, inbox_size);
    }
}

static void peer_writes(const uint8_t *bytes, size_t size)
{
    if (peer < 0 || peer_fin || peer_broken)
        return;
    ssize_t sent = send(peer, bytes, size, MSG_NOSIGNAL);
    peer_broken = sent != (ssize_t)size; /* a record cut short: nothing sensible can follow */
}

static void peer_seals(uint8_t type, const uint8_t *bytes, size_t size)
{
    static uint8_t plain[RECORD_PLAIN + 1], out[RECORD_LARGEST];
    if (!peer_sealing.aead.cipher)
        return;
    size = size < RECORD_PLAIN ? size : RECORD_PLAIN;
    memcpy(plain, bytes, size);
    size_t n = record_seal(&peer_sealing, plain, size, type ? type : 1, out);
    peer_writes(out, n);
    if (type == CONTENT_HANDSHAKE && size && bytes[0] == 24)
        record_keys_update(&peer_sealing, true);
}

/* ---- the owner */

static void take_events(void)
{
    struct engine_event *event = event_queue_take(&world.engine.events, 1000), *next;
    for (; event; event = next) {
        next = event->next;
        if (event->type == EVENT_ESTABLISHED && n_tokens < 256)
            tokens[n_tokens++] = event->token;
        bool question = event->type == EVENT_ACCEPTED || event->type == EVENT_CONNECT_REQUESTED;
        n_begun += question;
        n_ended += event->type == EVENT_CLOSED;
        if (question && n_asked < 256)
            asked[n_asked++] = event;
        else
            engine_event_free(event);
    }
}

static struct command *new_verdict(enum command_type type, uint64_t token)
{
    struct command *c = calloc(1, sizeof *c);
    c->type = type;
    c->token = token;
    c->fd = -1;
    return c;
}

static void to_tunnel(struct command *c)
{
    static const char san[] = "spiffe://a/ns/b/sa/c";
    struct address to = {.family = AF_INET, .port = 15008};
    c->route = route_new(&to, sizeof san + 64);
    c->route->identity = identity_ref(&world.identity);
    c->route->n_sans = 1;
    c->route->sans_size = sizeof san;
    memcpy(c->route->bytes, san, sizeof san);
    size_t size = 0;
    require(hpack_encode_connect((uint8_t *)c->route->bytes + sizeof san, &size, 64, "10.0.0.1:80", 11));
    c->route->block_size = size;
}

/* Plain, with or without something to say in the 200. */
static void answer_with(struct command *c, const struct address *to, bool fields)
{
    enum { ROOM = 64 };
    c->route = route_new(to, ROOM);
    require(c->route);
    uint8_t *block = (uint8_t *)c->route->bytes;
    if (fields) {
        hpack_encode_status(block, &c->route->block_size, ROOM, 200);
        hpack_encode_field(block, &c->route->block_size, ROOM, "baggage", 7, "k8s.namespace.name=shop", 23);
    }
}

static void decide(uint8_t how)
{
    if (!n_asked)
        return;
    struct engine_event *event = asked[0];
    memmove(asked, asked + 1, --n_asked * sizeof *asked);
    bool captured = event->type == EVENT_ACCEPTED;
    if (how < 200) {
        struct command *c = new_verdict(captured && how >= 50 ? COMMAND_TUNNEL : COMMAND_PLAIN, event->token);
        struct address to = {.family = AF_INET, .port = how == 199 ? 1 : 80};
        if (c->type == COMMAND_TUNNEL)
            to_tunnel(c);
        else
            answer_with(c, &to, how % 2);
        mailbox_post(&world.worker, c, false);
    } else {
        struct command *c = new_verdict(COMMAND_REFUSE, event->token);
        c->reason = REASON_policy_denied;
        c->status = 401;
        mailbox_post(&world.worker, c, false);
    }
    engine_event_free(event);
}

static void cut(uint8_t which)
{
    if (!n_tokens)
        return;
    struct command *c = new_verdict(COMMAND_CUT, tokens[which % n_tokens]);
    c->reason = REASON_policy_changed;
    mailbox_post(&world.worker, c, false);
}

/* ---- the worker */

/* A tunnel that waits for its handshake has had it. */
static void shake_hands(void)
{
    struct worker *w = &world.worker;
    for (struct link *node = w->tunnels.next; node != &w->tunnels; node = node->next) {
        struct tunnel *t = container_of(node, struct tunnel, link);
        if (t->state != TUNNEL_HANDSHAKE || peer_sealing.aead.cipher || peer < 0)
            continue;
        if (client_role) { /* the ClientHello is of no interest */
            while (read(peer, inbox, sizeof inbox) > 0)
                ;
        }
        handshake_free(t->handshake);
        bool turn = shortage_engine(false);
        require((t->handshake = handshake_new(t->identity, t->client, NULL, 0, NULL)) != NULL);
        t->handshake->peer_identity = strdup("spiffe://a/ns/b/sa/c");
        shortage_engine(turn);
        if (client_role && near_last_id)
            t->next_id = STREAM_ID_LARGEST - 1004;
        tunnel_opened(t);
        return;
    }
}

static void round_without_clock(void)
{
    struct worker *w = &world.worker;
    struct epoll_event events[64];
    shortage_engine(true);
    int n = epoll_wait(w->epoll, events, 64, 0);
    for (int i = 0; i < n; i++)
        run_source(events[i].data.ptr, events[i].events);
    worker_commands(w);
    shake_hands();
    run_ready(w);
    run_timers(w);
    finish_round(w);
    shortage_engine(false);
    take_events();
}

static void connect_app(void)
{
    int fd = client_role ? new_app() : -1;
    shortage_engine(true);
    if (fd >= 0)
        flow_accepted(&world.worker, fd, &world.outbound, &(struct address){0});
    shortage_engine(false);
}

static void begin(uint8_t manner)
{
    struct worker *w = &world.worker;
    w->now += 1000000; /* what earlier inputs left in buckets has leaked away */
    client_role = manner & 1;
    near_last_id = manner & 2;
    n_apps = n_asked = n_tokens = 0;
    n_begun = n_ended = 0;
    inbox_size = frames_at = 0;
    peer = -1;
    peer_broken = peer_fin = false;
    memset(&peer_sealing, 0, sizeof peer_sealing);
    memset(&peer_opening, 0, sizeof peer_opening);
    shortage_engine(true);
    if (client_role)
        connect_app();
    else
        tunnel_accepted(w, pair(&peer), &world.hbone, &(struct address){0});
    shortage_engine(false);
    round_without_clock();
}

static void close_app(unsigned i)
{
    if (apps[i] >= 0)
        close(apps[i]);
    apps[i] = -1;
}

static void finish(void)
{
    struct worker *w = &world.worker;
    for (int i = 0; i < 3; i++) {
        peer_reads();
        round_without_clock();
    }
    shortage_engine(true);
    abort_all(w);
    shortage_engine(false);
    take_events();
    require(n_begun == n_ended);
    while (n_asked)
        engine_event_free(asked[--n_asked]);
    require(world.engine.n_flows == 0 && world.engine.n_tunnels == 0 && world.engine.n_handshakes == 0);
    require(w->load == 0);
    for (int kind = LISTENER_OUTBOUND; kind <= LISTENER_HBONE; kind++)
        require(world.engine.n_sockets[kind] == 0);
    require(stat_get(&w->stats.defects) == 0);
    require(list_empty(&w->ready) && list_empty(&w->due_pools) && list_empty(&w->dirty) && !w->n_gathers);
    for (int i = 0; i < POOL_BUCKETS; i++)
        require(!w->pool[i]);
    for (unsigned i = 0; i < n_apps; i++)
        close_app(i);
    if (peer >= 0)
        close(peer);
    record_keys_free(&peer_sealing);
    record_keys_free(&peer_opening);
}

/* ---- applications */

static void app_does(enum operation op, unsigned i, unsigned amount)
{
    static uint8_t scrap[1 << 16];
    if (!n_apps || apps[i %= n_apps] < 0)
        return;
    if (op == OP_WRITE)
        (void)!send(apps[i], scrap, amount * 256 + 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    else if (op == OP_READ)
        (void)!read(apps[i], scrap, sizeof scrap);
    else if (op == OP_END)
        shutdown(apps[i], SHUT_WR);
    else
        close_app(i);
}

/* ---- the input */

struct input {
    const uint8_t *p, *end;
};

static unsigned take_octet(struct input *in)
{
    return in->p < in->end ? *in->p++ : 0;
}

static size_t take_octets(struct input *in, const uint8_t **bytes)
{
    size_t size = take_octet(in) << 8;
    size |= take_octet(in);
    if (size > (size_t)(in->end - in->p))
        size = (size_t)(in->end - in->p);
    *bytes = in->p;
    in->p += size;
    return size;
}

static void operate(struct input *in)
{
    const uint8_t *bytes;
    size_t size;
    unsigned op = take_octet(in) % OPERATIONS, type;
    switch (op) {
    case OP_DATA:
        size = take_octets(in, &bytes);
        peer_seals(CONTENT_APPLICATION_DATA, bytes, size);
        break;
    case OP_RECORD:
        type = take_octet(in);
        size = take_octets(in, &bytes);
        peer_seals((uint8_t)type, bytes, size);
        break;
    case OP_RAW:
        size = take_octets(in, &bytes);
        peer_writes(bytes, size);
        break;
    case OP_TIME:
        world.worker.now += CLOCK_STEP * (uint64_t)take_octet(in);
        break;
    case OP_PEER:
        peer_reads();
        break;
    case OP_WRITE:
        type = take_octet(in);
        app_does(op, type, take_octet(in));
        break;
    case OP_READ:
    case OP_END:
    case OP_CLOSE:
        app_does(op, take_octet(in), 0);
        break;
    case OP_VERDICT:
        decide((uint8_t)take_octet(in));
        break;
    case OP_CONNECT:
        connect_app();
        break;
    case OP_DRAIN:
        worker_drain(&world.worker, TAG, false);
        break;
    case OP_FIN:
        if (peer >= 0)
            shutdown(peer, SHUT_WR);
        peer_fin = true;
        break;
    case OP_CUT:
        cut((uint8_t)take_octet(in));
        break;
    default:
        break;
    }
}

static void run_input(const uint8_t *data, size_t size)
{
    struct input in = {data, data + size};
    if (!world.ready)
        set_up();
    begin((uint8_t)take_octet(&in));
    for (int operations = 0; in.p < in.end && operations < 500; operations++) {
        operate(&in);
        round_without_clock();
    }
    finish();
}

#ifndef RUN_ONLY
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    run_input(data, size);
    return 0;
}
#endif
