/*
 * Optional, at the host's end of enrolled pods' veths (tcx ingress): packets of direct connections go straight into the
 * other pod's network namespace, past the host's routing and filters.
 *
 * Only for what is open in `direct_conns`, between just the two pods that it names, each at its own veth: what
 * somebody sends under another pod's address goes the ordinary way, and whatever stops it there still does. Nothing is
 * dropped here, but for a pod whose veth has gone and which the agent has not let out yet.
 */
#define ETHERNET 14
#define TYPE_V4 bpf_htons(0x0800)
#define TYPE_V6 bpf_htons(0x86dd)
#define V4_NO_OPTIONS 0x45
#define V4_FRAGMENT bpf_htons(0x3fff)
#define FLAG_SYN 2
#define FLAG_ACK 16
#define TO_HOST 0
#define GO_ON -1

/* With a pod's address: the host's end of its veth, and the Ethernet addresses with which the host would send to it.
 * Connections that began before `since` (CLOCK_MONOTONIC, nanoseconds) stay on the way they began on: the host may
 * track them. */
struct redirect_host {
	u64 since;
	u32 ifindex;
	u32 slot;
	u8 ethernet[12];
	u32 unused;
};

BPF_F_TABLE("hash", struct ip16, struct redirect_host, redirect_hosts, 16384, BPF_F_NO_PREALLOC);

struct header4 {
	u8 version, service;
	u16 length, id, fragment;
	u8 ttl, protocol;
	u16 checksum;
	u32 from, to;
	u16 from_port, to_port;
	u32 seq, ack;
	u8 offset, flags;
} __attribute__((packed));

struct header6 {
	u32 version;
	u16 length;
	u8 protocol, hops;
	struct ip16 from, to;
	u16 from_port, to_port;
	u32 seq, ack;
	u8 offset, flags;
} __attribute__((packed));

/* TCP without IP options or extension headers, not fragmented. */
static inline int parsed(struct __sk_buff *skb, struct direct_tuple *tuple, u8 *flags)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct header4 *v4 = data + ETHERNET;
	struct header6 *v6 = data + ETHERNET;

	if (skb->protocol == TYPE_V4) {
		if ((void *)(v4 + 1) > end || v4->version != V4_NO_OPTIONS || v4->protocol != PROTOCOL_TCP ||
		    (v4->fragment & V4_FRAGMENT))
			return 0;
		tuple->from = (struct ip16){{0, 0, V4_MAPPED, v4->from}};
		tuple->to = (struct ip16){{0, 0, V4_MAPPED, v4->to}};
		tuple->from_port = bpf_ntohs(v4->from_port);
		tuple->to_port = bpf_ntohs(v4->to_port);
		*flags = v4->flags;
		return 1;
	}
	if (skb->protocol != TYPE_V6 || (void *)(v6 + 1) > end || v6->protocol != PROTOCOL_TCP)
		return 0;
	tuple->from = v6->from;
	tuple->to = v6->to;
	tuple->from_port = bpf_ntohs(v6->from_port);
	tuple->to_port = bpf_ntohs(v6->to_port);
	*flags = v6->flags;
	return 1;
}

/* Whether a direct connection from the one pod to the other is open. */
static inline int is_open(struct direct_tuple *tuple, struct redirect_host *from, struct redirect_host *to)
{
	struct direct_conn *conn = direct_conns.lookup(tuple);
	return conn && conn->what == OPEN && conn->from_slot == from->slot && conn->to_slot == to->slot &&
	       conn->began > from->since && conn->began > to->since;
}

int redirect(struct __sk_buff *skb)
{
	struct direct_tuple tuple = {}, reversed = {};
	struct redirect_host *from, *to;
	u8 flags = 0;

	if (skb->vlan_present || !parsed(skb, &tuple, &flags))
		return GO_ON;
	to = redirect_hosts.lookup(&tuple.to);
	if (!to)
		return GO_ON;
	from = redirect_hosts.lookup(&tuple.from);
	if (!from || from->ifindex != skb->ifindex)
		return GO_ON;
	reversed.from = tuple.to;
	reversed.to = tuple.from;
	reversed.from_port = tuple.to_port;
	reversed.to_port = tuple.from_port;
	if (!is_open(&tuple, from, to) && !is_open(&reversed, to, from))
		return GO_ON;
	if (bpf_skb_store_bytes(skb, 0, to->ethernet, sizeof(to->ethernet), 0))
		return GO_ON;
	bpf_skb_change_type(skb, TO_HOST); /* on a bridge's port it counted as somebody else's */
	if ((flags & (FLAG_SYN | FLAG_ACK)) == FLAG_SYN)
		count(REDIRECTED);
	return bpf_redirect_peer(to->ifindex, 0);
}
