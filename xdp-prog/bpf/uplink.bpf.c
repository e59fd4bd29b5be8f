/* The program of the uplink: takes what is Guestseal's, passes the rest to the kernel.
 *
 * Guestseal's are
 *  - ESP to an address of the host, fragment or not (Guestseal counts the fragments), and those of UDP 4500
 *    (RFC 3948), 4789 (VXLAN) and 6081 (Geneve) to an address of the host that the settings switch on;
 *  - with flat networks, every frame to a local guest's MAC, tagged or not, and every broadcast and multicast
 *    but those that ask for an address of the host itself (ARP request, neighbour solicitation).
 *
 * What is Guestseal's and finds no socket is dropped: a frame for a guest must not reach the host's stack,
 * and the kernel must not answer for a tunnel end that is only down for a moment. The host's own traffic
 * passes whether a socket lives or not; of what comes to the port of handshakes only as much as is taken
 * there, so that a flood of it costs established traffic no more than its reception.
 */
#include "parse.h"
#include "stamp.h"

#define PORT_UDP_ENCAPSULATION 4500
#define PORT_VXLAN             4789
#define PORT_GENEVE            6081

/* Datagrams to the port of handshakes that pass by one queue: so many in a second, and so many at once. Twice
 * what control takes of all queues, so that nothing is dropped here that it would have taken. */
#define HANDSHAKES_A_SECOND 5000
#define HANDSHAKES_AT_ONCE  1024
#define HANDSHAKE_INTERVAL  (1000000000ULL / HANDSHAKES_A_SECOND)

/* One byte a switch, and the UDP port of handshakes in host byte order, or 0; the loader writes it. */
struct settings {
	__u8 flat;
	__u8 udp_encapsulation;
	__u8 vxlan;
	__u8 geneve;
	__u16 handshakes;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

/* The host's own addresses: tunnel ends, and what the host answers ARP and ND for. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct address);
	__type(value, __u8);
} host_addresses SEC(".maps");

/* MACs of this host's guests on flat networks. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct mac);
	__type(value, __u8);
} guest_macs SEC(".maps");

/* When a queue's allowance of handshakes is whole again, by bpf_ktime_get_ns(). One CPU at a time serves a queue. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, QUEUES);
	__type(key, __u32);
	__type(value, __u64);
} handshakes SEC(".maps");

/* Whose a frame is. */
enum owner {
	OWNER_KERNEL,
	OWNER_GUESTSEAL,
	OWNER_HANDSHAKES, /* the kernel's, up to a rate */
};

static __always_inline bool is_host(const struct address *address)
{
	return bpf_map_lookup_elem(&host_addresses, address);
}

/* A broadcast or multicast that only the host itself can answer. */
static __always_inline bool asks_for_host(struct ethhdr *ethernet, void *end)
{
	struct address target;
	void *at;
	__be16 ethertype = skip_vlan(ethernet, end, &at);

	if (ethertype == bpf_htons(ETH_P_ARP)) {
		struct arp *arp = at;

		if ((void *)(arp + 1) > end || arp->operation != bpf_htons(ARP_REQUEST) ||
		    arp->protocol != bpf_htons(ETH_P_IP) || arp->hardware_length != ETH_ALEN ||
		    arp->protocol_length != 4)
			return false;
		from_ipv4(&target, arp->target_address);
		return is_host(&target);
	}
	if (ethertype == bpf_htons(ETH_P_IPV6)) {
		struct solicitation *solicitation;
		struct payload payload;

		if (!ipv6_payload(at, end, &payload) || payload.protocol != PROTOCOL_ICMPV6 ||
		    payload.later_fragment)
			return false;
		solicitation = payload.start;
		if ((void *)(solicitation + 1) > end || solicitation->type != NEIGHBOUR_SOLICITATION)
			return false;
		target = solicitation->target;
		return is_host(&target);
	}
	return false;
}

/* Of what is addressed to the host. */
static __always_inline enum owner owner_of(const struct payload *payload, void *end, const struct settings *on)
{
	struct udphdr *udp = payload->start;
	__u16 port;

	if (payload->protocol == PROTOCOL_ESP)
		return OWNER_GUESTSEAL;
	/* A later fragment of UDP shows no port. It passes; the kernel cannot complete it without the first. */
	if (payload->protocol != PROTOCOL_UDP || payload->later_fragment || (void *)(udp + 1) > end)
		return OWNER_KERNEL;
	port = bpf_ntohs(udp->dest);
	switch (port) {
	case PORT_UDP_ENCAPSULATION:
		return on->udp_encapsulation ? OWNER_GUESTSEAL : OWNER_KERNEL;
	case PORT_VXLAN:
		return on->vxlan ? OWNER_GUESTSEAL : OWNER_KERNEL;
	case PORT_GENEVE:
		return on->geneve ? OWNER_GUESTSEAL : OWNER_KERNEL;
	}
	return port && port == on->handshakes ? OWNER_HANDSHAKES : OWNER_KERNEL;
}

/* Tunnelled traffic for this host, which is never VLAN-tagged: the tunnel's ends are on the uplink itself. */
static __always_inline enum owner ends_tunnel(struct ethhdr *ethernet, void *end, const struct settings *on)
{
	struct payload payload;
	struct address destination;
	enum owner owner;

	if (ethernet->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(ethernet + 1);

		if (!ipv4_payload(ip, end, &payload))
			return OWNER_KERNEL;
		from_ipv4(&destination, &ip->daddr);
	} else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(ethernet + 1);

		if (!ipv6_payload(ip, end, &payload))
			return OWNER_KERNEL;
		__builtin_memcpy(&destination, &ip->daddr, sizeof(destination));
	} else {
		return OWNER_KERNEL;
	}
	owner = owner_of(&payload, end, on);
	return owner != OWNER_KERNEL && is_host(&destination) ? owner : OWNER_KERNEL;
}

static __always_inline enum owner owner_of_frame(void *start, void *end, const struct settings *on)
{
	struct ethhdr *ethernet = start;
	struct mac destination;

	if ((void *)(ethernet + 1) > end)
		return OWNER_KERNEL;
	if (on->flat) {
		if (ethernet->h_dest[0] & 1)
			return asks_for_host(ethernet, end) ? OWNER_KERNEL : OWNER_GUESTSEAL;
		__builtin_memcpy(&destination, ethernet->h_dest, sizeof(destination));
		if (bpf_map_lookup_elem(&guest_macs, &destination))
			return OWNER_GUESTSEAL;
	}
	return ends_tunnel(ethernet, end, on);
}

/* Whether a queue's allowance has room for another. */
static __always_inline bool may_pass(__u32 queue)
{
	__u64 *whole = bpf_map_lookup_elem(&handshakes, &queue);
	__u64 now = bpf_ktime_get_ns();
	__u64 at;

	if (!whole)
		return false;
	at = *whole > now ? *whole : now;
	if (at - now >= HANDSHAKES_AT_ONCE * HANDSHAKE_INTERVAL)
		return false;
	*whole = at + HANDSHAKE_INTERVAL;
	return true;
}

SEC("xdp.frags")
int uplink(struct xdp_md *ctx)
{
	__u32 only = 0;
	struct settings *on = bpf_map_lookup_elem(&settings, &only);
	enum owner owner = OWNER_KERNEL;

	/* An array's element always exists; the verifier does not know. */
	if (on)
		owner = owner_of_frame((void *)(long)ctx->data, (void *)(long)ctx->data_end, on);
	if (owner == OWNER_GUESTSEAL)
		return hand_over(ctx, 0);
	if (owner == OWNER_HANDSHAKES && !may_pass(ctx->rx_queue_index)) {
		count(COUNTER_HANDSHAKES);
		return XDP_DROP;
	}
	count(COUNTER_PASSED);
	return XDP_PASS;
}

/* No helper used here asks for a GPL program. */
char LICENSE[] SEC("license") = "Apache-2.0";
