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

static inline int is_leaving(u32 slot)
{
	struct pod *pod = slots.lookup(&slot);
	return !pod || (pod->flags & LEAVING);
}

static inline struct direct_cell *cell_of(u32 slot, struct ip16 *ip, u16 port, u16 cell)
{
	struct direct_key key = {.slot = slot, .ip = *ip, .port = port, .cell = cell};
	return direct_pairs.lookup(&key);
}

/* Where a connection of this pod's to this destination goes; 0: to the proxy. `index`: the cell that says so. */
static inline struct direct_backend *backend_of(u32 slot, struct ip16 *ip, u16 port, u16 *index)
{
	struct direct_backend *backend;
	struct direct_cell *cell = cell_of(slot, ip, port, 0);

	*index = 0;
	if (!cell || !is_lent())
		return 0;
	if (cell->cells > 1) {
		*index = ((u64)bpf_get_prandom_u32() * cell->cells) >> 32;
		cell = cell_of(slot, ip, port, *index);
		if (!cell)
			return 0;
		backend = bpf_get_prandom_u32() <= cell->keep ? &cell->own : &cell->other;
	} else {
		backend = &cell->own;
	}
	return backend;
}

static inline int is_backend(struct direct_backend *backend, u32 slot, struct ip16 *ip, u16 port)
{
	return backend->slot == slot && backend->port == port && is_same(&backend->ip, ip);
}

/* The pair still holds, and this is a connection of the pod that it names, from one of the pod's own addresses
 * (not from one that a socket was bound to by force) to the pair's backend. */
static inline int still_holds(struct bpf_sock_ops *ctx, struct direct_pending *direct, struct direct_tuple *tuple)
{
	struct direct_cell *cell = cell_of(direct->from_slot, &direct->asked, direct->asked_port, direct->cell);
	u64 cookie = bpf_get_netns_cookie(ctx);
	struct pod *pod = pods.lookup(&cookie);

	return cell && is_lent() &&
	       (is_backend(&cell->own, direct->to_slot, &tuple->to, tuple->to_port) ||
		is_backend(&cell->other, direct->to_slot, &tuple->to, tuple->to_port)) &&
	       pod && pod->slot == direct->from_slot && !(pod->flags & LEAVING) && !is_leaving(direct->to_slot) &&
	       (role_of(direct->from_slot, &tuple->from) & OWN);
}

static inline struct direct_pending *pending_of(u64 cookie)
{
	u32 index = cookie % PENDING;
	return direct_pending.lookup(&index);
}

/* getpeername() is to show the service. */
static inline int remember(struct bpf_sock *sk, struct ip16 *asked, u16 port)
{
	struct direct_socket *socket = direct_sockets.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (!socket)
		return 0;
	socket->asked = *asked;
	socket->asked_port = port;
	return 1;
}

/* Whether this connect() goes direct; then `backend` is filled, and sock_ops will know. */
static inline int preauthorised(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct pod *pod, struct ip16 *to,
				u16 port, struct direct_backend *backend)
{
	u16 cell;
	struct direct_backend *found = backend_of(pod->slot, to, port, &cell);
	u64 cookie = found ? bpf_get_socket_cookie(ctx) : 0;
	struct direct_pending *pending = pending_of(cookie);

	if (!found || !pending)
		return 0;
	*backend = *found;
	if (!is_backend(backend, backend->slot, to, port) && !remember(sk, to, port))
		return 0;
	*(volatile u64 *)&pending->cookie = 0;
	pending->from_slot = pod->slot;
	pending->to_slot = backend->slot;
	pending->asked = *to;
	pending->asked_port = port;
	pending->backend = backend->ip;
	pending->backend_port = backend->port;
	pending->cell = cell;
	pending->turbo = backend->turbo;
	*(volatile u64 *)&pending->cookie = cookie;
	return 1;
}

/*
 * Hand the record of a connection over, and forget the connection. Where there is no room it stays in `direct_conns`
 * until the agent fetches it: whoever removes it from there is the one that tells.
 */
static inline void tell(struct direct_tuple *tuple, struct direct_conn *conn, u8 what)
{
	struct direct_event *event;

	conn->what = what;
	event = direct_events.ringbuf_reserve(sizeof(struct direct_event));
	if (!event)
		return;
	event->conn = *conn;
	event->tuple = *tuple;
	event->unused = 0;
	if (direct_conns.delete(tuple))
		direct_events.ringbuf_discard(event, BPF_RB_NO_WAKEUP);
	else
		direct_events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
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
 * connection is in its map before its pair is looked at again: one of the two sees the other.
 */
static inline void client_connects(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	u64 cookie = bpf_get_socket_cookie(ctx), fence = 0;
	struct direct_pending *pending = pending_of(cookie), direct;
	struct direct_tuple tuple = {};
	struct direct_conn conn = {}, *kept;

	if (!pending || *(volatile u64 *)&pending->cookie != cookie)
		return;
	direct = *pending;
	if (*(volatile u64 *)&pending->cookie != cookie)
		return;
	*(volatile u64 *)&pending->cookie = 0;
	tuple_of(ctx, &tuple, 0);
	if (tuple.to_port != direct.backend_port || !is_same(&tuple.to, &direct.backend))
		return; /* of another attempt of this socket's, which came to nothing */
	conn.cookie = cookie;
	conn.began = bpf_ktime_get_ns();
	conn.from_slot = direct.from_slot;
	conn.to_slot = direct.to_slot;
	conn.asked = direct.asked;
	conn.asked_port = direct.asked_port;
	conn.turbo = direct.turbo;
	if (direct_conns.insert(&tuple, &conn)) {
		fall_back(ctx, sk);
		return;
	}
	__sync_fetch_and_add(&fence, 1); /* no processor may look at the pair before others see the connection */
	if (!still_holds(ctx, &direct, &tuple)) {
		kept = direct_conns.lookup(&tuple);
		if (kept)
			tell(&tuple, kept, FELL_BACK);
		fall_back(ctx, sk);
		return;
	}
	bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
	count(DIRECT);
}

/* Nothing is done when a server's socket repeats a packet: that it wants to be told so sets it apart from a client's. */
#define SERVER_FLAGS (BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RETRANS_CB_FLAG)

static inline void server_accepts(struct bpf_sock_ops *ctx)
{
	struct direct_tuple tuple = {};
	struct direct_conn *conn;

	tuple_of(ctx, &tuple, 1);
	conn = direct_conns.lookup(&tuple);
	if (!conn)
		return;
	conn->server = bpf_get_socket_cookie(ctx);
	bpf_sock_ops_cb_flags_set(ctx, SERVER_FLAGS);
}

/* The application's bytes that this socket got across. An acknowledged FIN counts as a byte; so does the SYN, but not
 * the one of an accepted connection. */
static inline u64 got_across(struct bpf_sock_ops *ctx, u32 before, u32 syn)
{
	u64 sent = ctx->bytes_acked - syn;

	if (before == TCP_STATE_FIN_WAIT2 || before == TCP_STATE_LAST_ACK || before == TCP_STATE_CLOSING)
		sent -= 1;
	return sent;
}

/* Each socket leaves its numbers with the connection; the last of the two tells. */
static inline void closed(struct bpf_sock_ops *ctx, u32 before)
{
	int is_client = !(READ(ctx->bpf_sock_ops_cb_flags) & BPF_SOCK_OPS_RETRANS_CB_FLAG), is_last = 0;
	u64 cookie = bpf_get_socket_cookie(ctx), handed_over = 0;
	struct direct_tuple tuple = {};
	struct direct_conn *conn;

	tuple_of(ctx, &tuple, !is_client);
	conn = direct_conns.lookup(&tuple);
	if (!conn || (is_client ? conn->cookie : conn->server) != cookie) {
		turbo_ended(ctx); /* told already, without this socket's numbers */
		return;
	}
	if (conn->turbo)
		handed_over = turbo_ended(ctx);
	conn->ended = bpf_ktime_get_ns();
	if (is_client) {
		conn->established = before != TCP_STATE_SYN_SENT && before != TCP_STATE_SYN_RECV;
		conn->state = before;
		conn->sent = got_across(ctx, before, conn->established) + handed_over;
		conn->received = ctx->bytes_received;
		if (conn->turbo)
			conn->received += turbo_received(&tuple);
		conn->client_done = 1;
		is_last = !conn->server;
	} else {
		conn->answered = got_across(ctx, before, 0) + handed_over;
		conn->served = 1;
	}
	__sync_fetch_and_add(&conn->done, 1);
	if (is_last || *(volatile u32 *)&conn->done > 1)
		tell(&tuple, conn, ENDED);
}

int direct(struct bpf_sock_ops *ctx)
{
	u32 op = READ(ctx->op);
	struct bpf_sock *sk;

	/* Called a dozen times for each connection: most of them end here. */
	if (op == BPF_SOCK_OPS_STATE_CB) {
		if (READ(ctx->args[1]) == TCP_STATE_CLOSE)
			closed(ctx, READ(ctx->args[0]));
	} else if (op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
		server_accepts(ctx);
	} else if (op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		sk = ctx->sk;
		if (sk)
			client_connects(ctx, sk);
	}
	return 1;
}

static inline struct direct_socket *rewritten(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	return sk ? direct_sockets.sk_storage_get(sk, 0, 0) : 0;
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

