/*
 * Capture of enrolled pods' TCP connections, and of their questions to name servers.
 *
 *   connect4, connect6   at connect(): sets a mark bit on the socket. A policy rule in the pod's network
 *                        namespace sends marked packets to `lo`. The destination is not touched.
 *   steer                at the SYN (SK_LOOKUP, one instance per pod): hands the connection to one of the
 *                        agent's listeners in that namespace, or leaves it alone.
 *
 * No packet of an established connection runs any of this. UDP to port 53 is looped by a policy rule of its
 * own: an unconnected socket takes its route before any hook could mark it.
 *
 * This keeps applications from going past the mesh by accident. A container with CAP_NET_RAW can write
 * packets of its own, and no capture of connections will see those: the receiving side has to refuse them.
 */
#define GO_DIRECT 2

/*
 * Names are to be had while no agent listens: sockets that are connected to a name server then, and the
 * agent's own, carry a mark which the rule for port 53 leaves alone.
 */
static inline int step_aside(struct bpf_sock_addr *ctx, struct bpf_sock *sk)
{
	u32 mark = sk->mark, wanted = mark & ~ASIDE_MARK, agent = bpf_get_current_pid_tgid() >> 32, index;
	u64 cookie = bpf_get_netns_cookie(ctx);
	struct pod *pod = pods.lookup(&cookie);
	struct bpf_sock *listener;

	if (!pod || !(pod->flags & CAPTURE_DNS) || agents.lookup(&agent))
		return 1;
	if (bpf_ntohs(ctx->user_port) == DNS_PORT) {
		index = pod->slot * KINDS + DNS_UDP;
		listener = (struct bpf_sock *)listeners.lookup(&index);
		if (listener)
			bpf_sk_release(listener);
		if (!listener || (pod->flags & LEAVING))
			wanted |= ASIDE_MARK;
	}
	if (wanted != mark)
		bpf_setsockopt(ctx, LEVEL_SOCKET, OPTION_MARK, &wanted, sizeof(wanted));
	return 1;
}

/*
 * Returns what the hook returns: 1 lets connect() go on, 0 refuses it with EPERM. GO_DIRECT: like 1, to
 * `backend`.
 *
 * The agent is known by its process, not by a mark: a container may set marks (CAP_NET_RAW), but cannot
 * become another process.
 */
static inline int mark(struct bpf_sock_addr *ctx, struct ip16 *to, struct direct_backend *backend)
{
	u32 mark, wanted, agent, no_device = 0, is_direct = 0;
	struct bpf_sock *sk = ctx->sk;
	struct pod *pod;
	u64 cookie;

	if (!sk)
		return 1;
	if (ctx->type == DATAGRAM && ctx->protocol == PROTOCOL_UDP)
		return step_aside(ctx, sk);
	if (ctx->type != STREAM || (ctx->protocol != PROTOCOL_TCP && ctx->protocol != PROTOCOL_MPTCP))
		return 1;
	direct_sockets.sk_storage_delete(sk);
	cookie = bpf_get_netns_cookie(ctx);
	pod = pods.lookup(&cookie);
	if (!pod)
		return 1;
	agent = bpf_get_current_pid_tgid() >> 32;
	if (agents.lookup(&agent))
		return 1;

	/* A socket may be connected again (AF_UNSPEC), so the bit is cleared as well as set. */
	mark = sk->mark;
	wanted = mark | LOOP_MARK;
	if ((pod->flags & LEAVING) || is_loopback(to) || is_link_local(to) ||
	    is_exempt(pod->slot, bpf_ntohs(ctx->user_port), EXEMPT_OUTBOUND))
		wanted = mark & ~LOOP_MARK;
	else if (ctx->protocol == PROTOCOL_TCP && !sk->bound_dev_if &&
		 preauthorised(ctx, sk, pod, to, bpf_ntohs(ctx->user_port), backend)) {
		wanted = mark & ~LOOP_MARK;
		is_direct = 1;
	} else if (role_of(pod->slot, to) & OWN) {
		wanted = mark & ~LOOP_MARK;
	}

	if (wanted != mark && bpf_setsockopt(ctx, LEVEL_SOCKET, OPTION_MARK, &wanted, sizeof(wanted)))
		return 0;
	if (!(wanted & LOOP_MARK))
		return is_direct ? GO_DIRECT : 1;
	/* A socket bound to a device would not take the route to lo: it would escape. (Bound to lo it would
	 * miss the answers, for which the kernel reports the device that owns the pod's address.) */
	if (sk->bound_dev_if &&
	    bpf_setsockopt(ctx, LEVEL_SOCKET, OPTION_BINDTODEVICE, &no_device, sizeof(no_device)))
		return 0;
	count(CAPTURED);
	return 1;
}

int connect4(struct bpf_sock_addr *ctx)
{
	struct ip16 to = {{0, 0, V4_MAPPED, READ(ctx->user_ip4)}};
	struct direct_backend backend = {};
	int result = mark(ctx, &to, &backend);

	if (result != GO_DIRECT)
		return result;
	ctx->user_ip4 = backend.ip.word[3];
	ctx->user_port = bpf_htons(backend.port);
	return 1;
}

int connect6(struct bpf_sock_addr *ctx)
{
	struct ip16 to = {{READ(ctx->user_ip6[0]), READ(ctx->user_ip6[1]), READ(ctx->user_ip6[2]),
			   READ(ctx->user_ip6[3])}};
	struct direct_backend backend = {};
	int result = mark(ctx, &to, &backend);

	if (result != GO_DIRECT)
		return result;
	ctx->user_ip6[0] = backend.ip.word[0];
	ctx->user_ip6[1] = backend.ip.word[1];
	ctx->user_ip6[2] = backend.ip.word[2];
	ctx->user_ip6[3] = backend.ip.word[3];
	ctx->user_port = bpf_htons(backend.port);
	return 1;
}

int steer(struct bpf_sk_lookup *ctx)
{
	volatile u32 patched = SLOT;    /* volatile: arithmetic with it must not be folded into other constants */
	u32 slot = patched, kind, index, from_role, to_role;
	struct ip16 from, to;
	struct direct_tuple tuple = {};
	u32 from4, to4, port, from_port, is_udp = ctx->protocol == PROTOCOL_UDP;
	struct bpf_sock *sk;
	struct pod *pod;
	long error;

	port = READ(ctx->local_port);
	if (is_udp && (port != DNS_PORT || ctx->ingress_ifindex != LO_IFINDEX))
		return SK_PASS;
	from.word[0] = READ(ctx->remote_ip6[0]);
	from.word[1] = READ(ctx->remote_ip6[1]);
	from.word[2] = READ(ctx->remote_ip6[2]);
	from.word[3] = READ(ctx->remote_ip6[3]);
	to.word[0] = READ(ctx->local_ip6[0]);
	to.word[1] = READ(ctx->local_ip6[1]);
	to.word[2] = READ(ctx->local_ip6[2]);
	to.word[3] = READ(ctx->local_ip6[3]);
	from4 = READ(ctx->remote_ip4);
	to4 = READ(ctx->local_ip4);
	from_port = bpf_ntohs(*(volatile u16 *)&ctx->remote_port);
	if (ctx->family == FAMILY_INET) {
		from = (struct ip16){{0, 0, V4_MAPPED, from4}};
		to = (struct ip16){{0, 0, V4_MAPPED, to4}};
	}
	if (is_loopback(&to))
		return SK_PASS;
	if (!is_udp && ctx->ingress_ifindex != LO_IFINDEX && port != HBONE_PORT) {
		tuple.from = from;
		tuple.to = to;
		tuple.from_port = from_port;
		tuple.to_port = port;
		if (is_announced(slot, &tuple))
			return SK_PASS;
	}
	pod = slots.lookup(&slot);
	if (!pod)
		return SK_PASS;
	to_role = role_of(slot, &to);
	from_role = role_of(slot, &from);

	if (ctx->ingress_ifindex == LO_IFINDEX) {
		/* Looped by the mark: the application's outbound connection, or, to an own address, the
		 * agent's onward connection under the client's address. */
		if (to_role & OWN)
			return SK_PASS;
		kind = OUTBOUND;
		if (port == DNS_PORT && (pod->flags & CAPTURE_DNS))
			kind = is_udp ? DNS_UDP : DNS_TCP;
		else if (is_udp)
			return SK_PASS;
	} else if ((from_role & OWN) || is_loopback(&from) || is_same(&from, &to)) {
		/* Inside the pod: to an own address, the kernel reports the device that has it, not lo. From
		 * outside such packets are no danger, since their answers stay inside. */
		return SK_PASS;
	} else if (pod->flags & LEAVING) {
		/* No longer captured; the pod's routes stay for connections that are still relayed. */
		return SK_PASS;
	} else if (port == HBONE_PORT) {
		kind = HBONE;
	} else if ((pod->flags & BYPASS_INBOUND) || (from_role & NODE) ||
		   is_exempt(slot, port, EXEMPT_INBOUND) ||
		   ((pod->flags & LISTED_INBOUND) && !is_exempt(slot, port, ONLY_INBOUND))) {
		return SK_PASS;
	} else {
		kind = INBOUND;
	}

	index = slot * KINDS + kind;
	sk = (struct bpf_sock *)listeners.lookup(&index);
	if (!sk) {
		/* No agent: fail closed. The kernel answers with a reset. For a looped IPv4 connection that
		 * has a source it will not route, so connect() goes on trying until an agent listens. */
		count(DROPPED);
		return SK_DROP;
	}
	error = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	count(error ? FAILED : kind < DNS_UDP ? STEERED_OUTBOUND + kind : STEERED_DNS);
	return error ? SK_DROP : SK_PASS;
}
