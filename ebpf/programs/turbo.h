/*
 * Acceleration of direct connections between pods that asked for it: messages go from socket to socket.
 *
 *   turbo_joins     sock_ops: puts both sockets of such a connection into `turbo_sockets`
 *   turbo           sk_msg: hands a message to the other socket, or leaves it to TCP
 *
 * Each direction begins with messages that are handed over. What waits at the other end may fill half of its receive
 * buffer (the kernel itself sets no limit); the first message for which there is no room goes by TCP, whose flow control
 * holds the sender up, and so does everything after it, until the connection ends. There is no way back: a reader that
 * waits inside tcp_recvmsg() (MSG_WAITALL, SO_RCVLOWAT) looks for more bytes of TCP only. It would never see what is
 * handed over meanwhile, and would take later bytes of TCP first. The other way round is safe: handed-over bytes are read
 * before those of TCP, and a call that finds any does not wait for more.
 *
 * A reader may have entered tcp_recvmsg() before its socket joined. That of an accepted socket cannot: accept() waits for
 * the socket's lock, which is held meanwhile. A client's can, in the moment between the two; so nothing is handed over to
 * a client whose application has not sent anything yet.
 *
 * The offsets of some members of the kernel's sockets are holes that the loader fills.
 */
#define WRITE_SEQ 0x5107a61d
#define COPIED_SEQ 0x5107a61e
#define RMEM_ALLOC 0x5107a61f
#define BYTES_RECEIVED 0x5107a620
#define RCVBUF 0x5107a621

/* Instead of the address of the other socket. UNKNOWN: not looked for yet. UNHEARD: the same, of a client from which no
 * message has come. BY_TCP: not needed any more. */
enum turbo_peer { UNKNOWN, UNHEARD, BY_TCP };

/* One side of a connection, by its own tuple (from: itself). */
struct turbo_end {
	u64 cookie;     /* of the connection */
	u64 own, peer;  /* addresses of the sockets; peer: or `turbo_peer` */
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
	end.peer = op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB ? UNHEARD : UNKNOWN;
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

/* The other socket, before the first message of this direction. BY_TCP: it has not joined, an application there may be
 * reading already, or TCP has carried bytes this way. */
static inline u64 first_look(struct turbo_end *end, struct direct_tuple *other, u32 bytes_received)
{
	struct turbo_end *found = turbo_ends.lookup(other);
	u64 received = 0;

	if (!found || found->cookie != end->cookie)
		return BY_TCP;
	if (end->peer == UNHEARD && found->peer == UNKNOWN)
		return BY_TCP;
	if (bpf_probe_read_kernel(&received, sizeof(received), (void *)(found->own + bytes_received)) || received)
		return BY_TCP;
	return found->own;
}

static inline int has_room(u64 sk, u32 size, u32 rmem_alloc, u32 rcvbuf)
{
	u32 most = member(sk, rcvbuf) / 2, waiting = member(sk, rmem_alloc);

	return size <= most && waiting <= most - size;
}

int turbo(struct sk_msg_md *msg)
{
	volatile u32 write_seq = WRITE_SEQ, copied_seq = COPIED_SEQ, rmem_alloc = RMEM_ALLOC, rcvbuf = RCVBUF;
	volatile u32 bytes_received = BYTES_RECEIVED;
	struct direct_tuple own = {}, other = {};
	struct turbo_end *end;
	u32 size = READ(msg->size);

	tuple_of(msg, &own, 0);
	end = turbo_ends.lookup(&own);
	if (!end || end->peer == BY_TCP)
		return SK_PASS;
	reverse(&own, &other);
	if (end->peer == UNKNOWN || end->peer == UNHEARD)
		end->peer = first_look(end, &other, bytes_received);
	if (end->peer != BY_TCP && member(end->own, write_seq) == member(end->peer, copied_seq) &&
	    has_room(end->peer, size, rmem_alloc, rcvbuf) &&
	    turbo_sockets.msg_redirect_hash(msg, &other, BPF_F_INGRESS) == SK_PASS)
		end->sent += size;
	else
		end->peer = BY_TCP;
	return SK_PASS;
}
