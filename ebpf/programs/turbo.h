/*
 * Acceleration of direct connections between pods that asked for it: messages go from socket to socket.
 *
 *   turbo_joins     sock_ops: puts both sockets of such a connection into `turbo_sockets`
 *   turbo           sk_msg: hands a message to the other socket, or leaves it to TCP
 *
 * A message is handed over only when all bytes that TCP was given before it have been read by the other application
 * (else it would overtake them), and while less than TURBO_QUEUE bytes wait there (the kernel itself sets no limit).
 * Otherwise it goes by TCP, whose flow control holds the sender up.
 *
 * The offsets of three members of the kernel's sockets are holes that the loader fills.
 */
#define TURBO_QUEUE (1 << 20)
#define WRITE_SEQ 0x5107a61d
#define COPIED_SEQ 0x5107a61e
#define RMEM_ALLOC 0x5107a61f

/* One side of a connection, by its own tuple (from: itself). */
struct turbo_end {
	u64 cookie;     /* of the connection */
	u64 own, peer;  /* addresses of the sockets; peer 0: not known yet */
	u64 sent;       /* bytes handed over by this side */
};

BPF_SOCKHASH(turbo_sockets, struct direct_tuple, 131072);
BPF_F_TABLE("hash", struct direct_tuple, struct turbo_end, turbo_ends, 131072, BPF_F_NO_PREALLOC);

static inline void reverse(struct direct_tuple *tuple, struct direct_tuple *reversed)
{
	reversed->from = tuple->to;
	reversed->to = tuple->from;
	reversed->from_port = tuple->to_port;
	reversed->to_port = tuple->from_port;
}

int turbo_joins(struct bpf_sock_ops *ctx)
{
	u32 op = READ(ctx->op);
	struct direct_tuple own = {}, client = {};
	struct turbo_end end = {};
	struct direct_conn *conn;
	struct bpf_sock *sk;
	int failed;

	if (op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	sk = ctx->sk;
	if (!sk)
		return 1;
	tuple_of(ctx, &own, 0);
	tuple_of(ctx, &client, op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB);
	conn = direct_conns.lookup(&client);
	if (!conn || !conn->turbo)
		return 1;
	/* Multipath TCP reads and writes its own way. */
	if (bpf_skc_to_mptcp_sock(sk))
		return 1;
	end.cookie = conn->cookie;
	end.own = (u64)bpf_skc_to_tcp_sock(sk);
	if (!end.own)
		return 1;
	turbo_ends.update(&own, &end);
	failed = turbo_sockets.sock_hash_update(ctx, &own, BPF_ANY);
	if (failed) {
		turbo_ends.delete(&own);
		return 1;
	}
	count(TURBO);
	return 1;
}

/* What this socket handed over, when it closes. */
static inline u64 turbo_ended(struct bpf_sock_ops *ctx)
{
	struct direct_tuple own = {};
	struct turbo_end *end;
	u64 sent;

	tuple_of(ctx, &own, 0);
	end = turbo_ends.lookup(&own);
	if (!end)
		return 0;
	sent = end->sent;
	turbo_ends.delete(&own);
	return sent;
}

/* What the other side of this socket has handed over until now; 0 when it has closed and told itself. */
static inline u64 turbo_received(struct direct_tuple *own)
{
	struct direct_tuple other = {};
	struct turbo_end *end;

	reverse(own, &other);
	end = turbo_ends.lookup(&other);
	return end ? end->sent : 0;
}

static inline u32 member(u64 sk, u32 offset)
{
	u32 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)(sk + offset));
	return value;
}

/* The other socket of the connection, once it is there. */
static inline u64 peer_of(struct turbo_end *end, struct direct_tuple *other)
{
	struct turbo_end *found;
	u64 peer;

	if (end->peer)
		return end->peer;
	found = turbo_ends.lookup(other);
	if (!found)
		return 0;
	peer = found->own;
	if (found->cookie != end->cookie)
		return 0;
	end->peer = peer;
	return peer;
}

int turbo(struct sk_msg_md *msg)
{
	volatile u32 write_seq = WRITE_SEQ, copied_seq = COPIED_SEQ, rmem_alloc = RMEM_ALLOC;
	struct direct_tuple own = {}, other = {};
	struct turbo_end *end;
	u32 size = READ(msg->size);
	int verdict;
	u64 peer;

	tuple_of(msg, &own, 0);
	end = turbo_ends.lookup(&own);
	if (!end)
		return SK_PASS;
	reverse(&own, &other);
	peer = peer_of(end, &other);
	if (!peer || member(end->own, write_seq) != member(peer, copied_seq) ||
	    member(peer, rmem_alloc) + size > TURBO_QUEUE)
		return SK_PASS;
	verdict = turbo_sockets.msg_redirect_hash(msg, &other, BPF_F_INGRESS);
	if (verdict == SK_PASS)
		end->sent += size;
	return SK_PASS;
}
