/*
 * What the programs share: numbers, maps of enrolled pods, questions about addresses.
 *
 * The files are compiled as one text, in the order common.h, pairs.h, turbo.h, direct.h, redirect.h, capture.c.
 *
 * Addresses are 16 bytes in network order (IPv4 as ::ffff:a.b.c.d). Ports are in host order.
 */
#include <uapi/linux/bpf.h>

#define FAMILY_INET 2
#define STREAM 1
#define DATAGRAM 2
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_MPTCP 262
#define LEVEL_SOCKET 1
#define OPTION_BINDTODEVICE 25
#define OPTION_MARK 36
#define LO_IFINDEX 1
#define HBONE_PORT 15008
#define DNS_PORT 53
#define LOOP_MARK 0x1000
#define ASIDE_MARK 0x2000
#define V4_MAPPED bpf_htonl(0xffff)

/* Stands for the pod's slot; the compiler wrapper turns it into a named hole which the loader fills. */
#define SLOT 0x5107a61c

enum kind { OUTBOUND, INBOUND, HBONE, DNS_UDP, DNS_TCP, KINDS };
enum role { OWN = 1, NODE = 2 };
enum flag { BYPASS_INBOUND = 1, LEAVING = 2, LISTED_INBOUND = 4, CAPTURE_DNS = 8 };
enum direction { EXEMPT_OUTBOUND, EXEMPT_INBOUND, ONLY_INBOUND };
enum counter {
	CAPTURED,
	STEERED_OUTBOUND,
	STEERED_INBOUND,
	STEERED_HBONE,
	DROPPED,
	FAILED,
	DIRECT,
	FALLEN_BACK,
	STEERED_DNS,
	TURBO,
	REDIRECTED,
	COUNTERS
};

struct ip16 {
	u32 word[4];
};

struct pod {
	u64 cookie;     /* of the network namespace */
	u32 netns;      /* its inode: lets user space find it again after a restart */
	u32 slot;
	u32 flags;
	u8 saved[12];   /* sysctl values before enrolment; user space's own affair */
};

struct address_key {
	u32 slot;
	struct ip16 ip;
};

struct port_key {
	u32 slot;
	u16 port;
	u16 direction;
};

BPF_F_TABLE("hash", u64, struct pod, pods, 4096, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", u32, struct pod, slots, 4096, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", struct address_key, u32, addresses, 131072, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", struct port_key, u32, exempt, 65536, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", u32, u32, agents, 64, BPF_F_NO_PREALLOC);
BPF_TABLE("sockmap", u32, u64, listeners, 4096 * KINDS);
BPF_ARRAY(counters, u64, COUNTERS);

/* Context fields are read one by one: the verifier refuses merged or postponed context reads. */
#define READ(field) (*(volatile u32 *)&(field))

static inline void count(u32 which)
{
	u64 *value = counters.lookup(&which);
	if (value)
		__sync_fetch_and_add(value, 1);
}

static inline u32 role_of(u32 slot, struct ip16 *ip)
{
	struct address_key key = {.slot = slot, .ip = *ip};
	u32 *role = addresses.lookup(&key);
	return role ? *role : 0;
}

/* Whether the port is in this list of the pod's. */
static inline int is_exempt(u32 slot, u16 port, u16 direction)
{
	struct port_key key = {.slot = slot, .port = port, .direction = direction};
	return exempt.lookup(&key) != 0;
}

static inline int is_v4(struct ip16 *ip)
{
	return !ip->word[0] && !ip->word[1] && ip->word[2] == V4_MAPPED;
}

/* 127.0.0.0/8, ::1, and the unspecified addresses, which connect() takes for loopback. */
static inline int is_loopback(struct ip16 *ip)
{
	u32 last = bpf_ntohl(ip->word[3]);
	if (is_v4(ip))
		return (last >> 24) == 127 || last == 0;
	return !ip->word[0] && !ip->word[1] && !ip->word[2] && last <= 1;
}

/* fe80::/10 cannot leave the link and is bound to a device: it cannot be looped, so it is left alone. */
static inline int is_link_local(struct ip16 *ip)
{
	return (bpf_ntohl(ip->word[0]) & 0xffc00000) == 0xfe800000;
}

static inline int is_same(struct ip16 *a, struct ip16 *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

