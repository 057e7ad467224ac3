/*
 * The direct path: connections between pods of this node that the agent has allowed beforehand are not
 * captured but go over plain TCP in the kernel.
 *
 *   preauthorised   asked by the connect hooks: is (pod, destination) among the pairs, and to which backend
 *   direct          sock_ops: tells the destination's `steer` which connection is coming, before its SYN leaves,
 *                   and the agent what became of it
 *   peer4, peer6    getpeername() shows the service's address that was asked for
 *
 * Whatever is not in `direct_pairs` at the moment the SYN leaves goes to the proxy. Pairs count only until
 * `direct_until`, which a living agent keeps ahead of the clock.
 */
#define TCP_STATE_SYN_SENT 2
#define TCP_STATE_SYN_RECV 3
#define TCP_STATE_FIN_WAIT2 5
#define TCP_STATE_CLOSE 7
#define TCP_STATE_LAST_ACK 9
#define TCP_STATE_CLOSING 11

static inline int is_lent(void)
{
	u32 only = 0;
	u64 *until = direct_until.lookup(&only);
	return until && *until > bpf_ktime_get_ns();
}

static inline struct direct_backend *pair_of(u32 slot, struct ip16 *ip, u16 port)
{
	struct direct_key key = {.slot = slot, .ip = *ip, .port = port};
	struct direct_backend *backend;
	struct pod *pod;
	u32 to;

	if (!is_lent())
		return 0;
	backend = direct_pairs.lookup(&key);
	if (!backend)
		return 0;
	to = backend->slot;
	pod = slots.lookup(&to);
	return pod && !(pod->flags & LEAVING) ? backend : 0;
}

/* The pair still holds, and this is a connection of the pod that it names, from one of the pod's own addresses
 * (not from one that a socket was bound to by force) to the pair's backend. */
static inline int still_holds(struct bpf_sock_ops *ctx, struct direct_socket *direct, struct direct_tuple *tuple)
{
	struct direct_backend *pair = pair_of(direct->from_slot, &direct->asked, direct->asked_port);
	u64 cookie = bpf_get_netns_cookie(ctx);
	struct pod *pod = pods.lookup(&cookie);

	return pair && pair->slot == direct->to_slot && pair->port == tuple->to_port && is_same(&pair->ip, &tuple->to) &&
	       pod && pod->slot == direct->from_slot && !(pod->flags & LEAVING) &&
	       (role_of(direct->from_slot, &tuple->from) & OWN);
}

/* Whether this connect() goes direct; then `backend` is filled, and the socket remembers. */
static inline int preauthorised(struct bpf_sock *sk, struct pod *pod, struct ip16 *to, u16 port,
				struct direct_backend *backend)
{
	struct direct_backend *found = pair_of(pod->slot, to, port);
	struct direct_socket *direct;

	if (!found)
		return 0;
	*backend = *found;
	direct = direct_sockets.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!direct)
		return 0;
	direct->from_slot = pod->slot;
	direct->to_slot = backend->slot;
	direct->asked = *to;
	direct->asked_port = port;
	direct->backend = backend->ip;
	direct->backend_port = backend->port;
	direct->role = CLIENT;
	direct->established = 0;
	direct->turbo = backend->turbo;
	return 1;
}

static inline int tell(struct direct_event *event, struct direct_socket *direct, u8 what)
{
	event->cookie = direct->cookie;
	event->at = bpf_ktime_get_ns();
	event->from_slot = direct->from_slot;
	event->to_slot = direct->to_slot;
	event->asked = direct->asked;
	event->asked_port = direct->asked_port;
	event->what = what;
	event->established = direct->established;
	return (int)(long)direct_events.push(event, 0); /* BCC declares a pointer */
}

/* Back to the proxy: the mark makes the kernel look the route up again before the SYN leaves. */
static inline void fall_back(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	u32 wanted = sk->mark | LOOP_MARK;

	direct_sockets.sk_storage_delete(sk);
	bpf_setsockopt(ctx, LEVEL_SOCKET, OPTION_MARK, &wanted, sizeof(wanted));
	count(FALLEN_BACK);
}

/*
 * The socket can be found by now. The agent takes a pair away before it looks for connections, and here a
 * connection is told of before its pair is looked at again: one of the two sees the other.
 */
static inline void client_connects(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct direct_socket *direct)
{
	struct direct_event event = {};
	struct direct_conn conn = {};

	tuple_of(ctx, &event.tuple, 0);
	direct->cookie = bpf_get_socket_cookie(ctx);
	conn.cookie = direct->cookie;
	conn.began = bpf_ktime_get_ns();
	conn.from_slot = direct->from_slot;
	conn.to_slot = direct->to_slot;
	conn.asked = direct->asked;
	conn.asked_port = direct->asked_port;
	conn.turbo = direct->turbo;
	if (direct_conns.insert(&event.tuple, &conn)) {
		fall_back(ctx, sk);
		return;
	}
	if (tell(&event, direct, BEGUN)) {
		direct_conns.delete(&event.tuple);
		fall_back(ctx, sk);
		return;
	}
	if (!still_holds(ctx, direct, &event.tuple)) {
		direct_conns.delete(&event.tuple);
		tell(&event, direct, FELL_BACK);
		fall_back(ctx, sk);
		return;
	}
	bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
	count(DIRECT);
}

static inline void server_accepts(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct direct_tuple tuple = {};
	struct direct_socket *direct;
	struct direct_conn *conn;

	tuple_of(ctx, &tuple, 1);
	conn = direct_conns.lookup(&tuple);
	if (!conn)
		return;
	direct = direct_sockets.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!direct)
		return;
	direct->cookie = conn->cookie;
	direct->from_slot = conn->from_slot;
	direct->to_slot = conn->to_slot;
	direct->role = SERVER;
	direct->turbo = conn->turbo;
	conn->accepted = 1;
	bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
}

static inline void closed(struct bpf_sock_ops *ctx, struct direct_socket *direct, u32 before)
{
	struct direct_event event = {};
	struct direct_conn *conn;
	int is_client = direct->role == CLIENT;

	direct->established = before != TCP_STATE_SYN_SENT && before != TCP_STATE_SYN_RECV;
	event.state = before;
	event.sent = ctx->bytes_acked;
	event.received = ctx->bytes_received;
	/* An acknowledged FIN counts as a byte; so does the SYN, but not the one of an accepted connection. */
	if (before == TCP_STATE_FIN_WAIT2 || before == TCP_STATE_LAST_ACK || before == TCP_STATE_CLOSING)
		event.sent -= 1;
	if (direct->turbo)
		event.sent += turbo_ended(ctx);
	if (is_client) {
		event.sent -= direct->established;
		tuple_of(ctx, &event.tuple, 0);
		if (direct->turbo)
			event.received += turbo_received(&event.tuple);
		conn = direct_conns.lookup(&event.tuple);
		if (conn && conn->cookie == direct->cookie) {
			event.accepted = conn->accepted;
			direct_conns.delete(&event.tuple);
		}
	}
	tell(&event, direct, is_client ? CLIENT_CLOSED : SERVER_CLOSED);
}

int direct(struct bpf_sock_ops *ctx)
{
	u32 op = READ(ctx->op);
	struct direct_socket *direct;
	struct bpf_sock *sk;

	/* Called a dozen times for each connection: most of them end here. */
	if (op == BPF_SOCK_OPS_STATE_CB) {
		if (READ(ctx->args[1]) != TCP_STATE_CLOSE)
			return 1;
	} else if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
		return 1;
	}
	sk = ctx->sk;
	if (!sk)
		return 1;
	if (op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
		server_accepts(ctx, sk);
		return 1;
	}
	direct = direct_sockets.sk_storage_get(sk, 0, 0);
	if (!direct)
		return 1;
	if (op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		client_connects(ctx, sk, direct);
		return 1;
	}
	closed(ctx, direct, READ(ctx->args[0]));
	return 1;
}

static inline struct direct_socket *rewritten(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct direct_socket *direct = sk ? direct_sockets.sk_storage_get(sk, 0, 0) : 0;

	if (!direct || direct->role != CLIENT)
		return 0;
	return direct->asked_port == direct->backend_port && is_same(&direct->asked, &direct->backend) ? 0 : direct;
}

int peer4(struct bpf_sock_addr *ctx)
{
	struct direct_socket *direct = rewritten(ctx);

	if (direct) {
		ctx->user_ip4 = direct->asked.word[3];
		ctx->user_port = bpf_htons(direct->asked_port);
	}
	return 1;
}

int peer6(struct bpf_sock_addr *ctx)
{
	struct direct_socket *direct = rewritten(ctx);

	if (direct) {
		ctx->user_ip6[0] = direct->asked.word[0];
		ctx->user_ip6[1] = direct->asked.word[1];
		ctx->user_ip6[2] = direct->asked.word[2];
		ctx->user_ip6[3] = direct->asked.word[3];
		ctx->user_port = bpf_htons(direct->asked_port);
	}
	return 1;
}

/* Asked by `steer`: has the connect side announced just this connection, to just this pod? */
static inline int is_announced(u32 slot, struct direct_tuple *tuple)
{
	struct direct_conn *conn = direct_conns.lookup(tuple);
	return conn && conn->to_slot == slot;
}

