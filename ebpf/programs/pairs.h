/*
 * What the direct path and its acceleration share: structs and maps (codecs: ebpf/pairs.py), and a socket's tuple.
 */
#define EVENT_PAGES 512
#define PENDING 4096

enum direct_what { OPEN, ENDED, FELL_BACK };

struct direct_key {
	u32 slot;       /* of the pod that connects */
	struct ip16 ip; /* what it asks for */
	u16 port;
	u16 cell;       /* the first, 0, says how many there are */
};

struct direct_backend {
	struct ip16 ip;
	u32 slot;
	u16 port;
	u16 turbo;      /* both pods asked for it */
};

/* One of `cells` between which a draw chooses, each as likely as the others; in it `own` is chosen by a second draw of
 * at most `keep`, else `other` (Vose's alias method: ebpf/choices.py). */
struct direct_cell {
	struct direct_backend own, other;
	u32 keep;
	u32 cells;
};

/* As the client sees it. */
struct direct_tuple {
	struct ip16 from, to;
	u16 from_port, to_port;
};

/* From before the SYN until both sockets have closed; then its record goes into `direct_events`. */
struct direct_conn {
	u64 cookie;     /* of the client's socket: names the connection */
	u64 server;     /* cookie of the server's socket, once it is known; it will report its end, too */
	u64 began, ended;               /* CLOCK_MONOTONIC, nanoseconds */
	u64 sent, received, answered;   /* by the client; it may count a FIN as received; by the server */
	u32 from_slot, to_slot;
	struct ip16 asked;
	u16 asked_port;
	u8 turbo;
	u8 what;
	u8 established;
	u8 state;       /* of the client's socket before CLOSE */
	u8 client_done;
	u8 served;      /* the server's socket has reported its end */
	u32 done;       /* how many of them have */
	u32 unused;
};

/* From connect() to the SYN: in `direct_pending`, where the socket's cookie leads to. A later one may take the place; then
 * the connection goes to the proxy. */
struct direct_pending {
	u64 cookie;
	u32 from_slot, to_slot;
	struct ip16 asked, backend;
	u16 asked_port, backend_port;
	u16 cell;
	u16 turbo;
};

/* With a client's socket that asked for a service. */
struct direct_socket {
	struct ip16 asked;
	u16 asked_port;
	u16 unused;
};

struct direct_event {
	struct direct_conn conn;
	struct direct_tuple tuple;
	u32 unused;
};

BPF_F_TABLE("hash", struct direct_key, struct direct_cell, direct_pairs, 65536, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", struct direct_tuple, struct direct_conn, direct_conns, 131072, BPF_F_NO_PREALLOC);
BPF_RINGBUF_OUTPUT(direct_events, EVENT_PAGES);
BPF_ARRAY(direct_pending, struct direct_pending, PENDING);
BPF_SK_STORAGE(direct_sockets, struct direct_socket);
BPF_ARRAY(direct_until, u64, 1);

/* Both ends of a socket, from a context of sock_ops or sk_msg. */
#define tuple_of(ctx, tuple, reversed)                                                                                 \
	do {                                                                                                           \
		struct direct_raw raw;                                                                                 \
		raw.local.word[0] = READ((ctx)->local_ip6[0]);                                                         \
		raw.local.word[1] = READ((ctx)->local_ip6[1]);                                                         \
		raw.local.word[2] = READ((ctx)->local_ip6[2]);                                                         \
		raw.local.word[3] = READ((ctx)->local_ip6[3]);                                                         \
		raw.remote.word[0] = READ((ctx)->remote_ip6[0]);                                                       \
		raw.remote.word[1] = READ((ctx)->remote_ip6[1]);                                                       \
		raw.remote.word[2] = READ((ctx)->remote_ip6[2]);                                                       \
		raw.remote.word[3] = READ((ctx)->remote_ip6[3]);                                                       \
		raw.local4 = READ((ctx)->local_ip4);                                                                   \
		raw.remote4 = READ((ctx)->remote_ip4);                                                                 \
		raw.local_port = READ((ctx)->local_port);                                                              \
		raw.remote_port = bpf_ntohl(READ((ctx)->remote_port));                                                 \
		raw.family = READ((ctx)->family);                                                                      \
		tuple_from(&raw, tuple, reversed);                                                                     \
	} while (0)

struct direct_raw {
	struct ip16 local, remote;
	u32 family, local4, remote4;
	u16 local_port, remote_port;
};

static inline void tuple_from(struct direct_raw *raw, struct direct_tuple *tuple, int reversed)
{
	if (raw->family == FAMILY_INET || is_v4(&raw->remote)) {
		raw->local = (struct ip16){{0, 0, V4_MAPPED, raw->local4}};
		raw->remote = (struct ip16){{0, 0, V4_MAPPED, raw->remote4}};
	}
	tuple->from = reversed ? raw->remote : raw->local;
	tuple->to = reversed ? raw->local : raw->remote;
	tuple->from_port = reversed ? raw->remote_port : raw->local_port;
	tuple->to_port = reversed ? raw->local_port : raw->remote_port;
}
