/* The uplink: what is for Guestseal goes to it, the rest (ssh, the host's own ARP) to the kernel. */
#include "maps.h"
#include "parse.h"

/* Set before the program is loaded. */
const volatile __u8 flat_networks = 0;
const volatile __u8 udp_encapsulation = 0;
const volatile __u8 vxlan = 0;
const volatile __u8 geneve = 0;

/* MACs of this host's guests on flat networks. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u8[6]);
	__type(value, __u8);
} guest_macs SEC(".maps");

/* This host's own addresses: its VTEP, its tunnel end. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct address);
	__type(value, __u8);
} host_addresses SEC(".maps");

static __always_inline int is_ours(const struct address *address)
{
	return bpf_map_lookup_elem(&host_addresses, address) != NULL;
}

static __always_inline int is_tunnel_port(__be16 port)
{
	switch (bpf_ntohs(port)) {
	case 4500:
		return udp_encapsulation;
	case 4789:
		return vxlan;
	case 6081:
		return geneve;
	default:
		return 0;
	}
}

/*
 * Whether an upper-layer protocol to this host's address is for Guestseal. A later fragment has no UDP header; what it
 * carries instead is not looked at.
 */
static __always_inline int is_sealed(__u8 protocol, int later, void *header, void *end)
{
	struct udphdr *udp = header;

	if (protocol == IPPROTO_ESP)
		return 1;
	if (protocol != IPPROTO_UDP || later || (void *)(udp + 1) > end)
		return 0;
	return is_tunnel_port(udp->dest);
}

/* Whether a broadcast or multicast asks for this host itself: the kernel answers. */
static __always_inline int asks_for_host(__be16 ethertype, void *header, void *end)
{
	struct address target;

	if (ethertype == bpf_htons(ETH_P_ARP)) {
		struct arp_ip4 *arp = header;
		if ((void *)(arp + 1) > end || arp->operation != bpf_htons(ARP_REQUEST))
			return 0;
		mapped(&target, arp->target_ip);
		return is_ours(&target);
	}
	if (ethertype == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip6 = header;
		struct neighbour_solicitation *asked = (void *)(ip6 + 1);
		if ((void *)(asked + 1) > end || ip6->nexthdr != IPPROTO_ICMPV6 || asked->type != NEIGHBOUR_SOLICITATION)
			return 0;
		__builtin_memcpy(target.bytes, asked->target, sizeof(target.bytes));
		return is_ours(&target);
	}
	return 0;
}

/* Whether a packet to the host's own MAC is for Guestseal. */
static __always_inline int is_for_tunnel(__be16 ethertype, void *header, void *end)
{
	struct address target;

	if (ethertype == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip4 = header;
		if ((void *)(ip4 + 1) > end)
			return 0;
		mapped(&target, &ip4->daddr);
		int later = ip4->frag_off & bpf_htons(0x1fff);
		return is_ours(&target) && is_sealed(ip4->protocol, later, header + ip4->ihl * 4, end);
	}
	if (ethertype == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip6 = header;
		if ((void *)(ip6 + 1) > end)
			return 0;
		__builtin_memcpy(target.bytes, &ip6->daddr, sizeof(target.bytes));
		__u8 protocol = ip6->nexthdr;
		void *upper = ip6 + 1;
		int later = 0;
		if (protocol == IPPROTO_FRAGMENT) {
			struct fragment6 *fragment = upper;
			if ((void *)(fragment + 1) > end)
				return 0;
			protocol = fragment->next;
			upper = fragment + 1;
			later = fragment->offset & bpf_htons(0xfff8);
		}
		return is_ours(&target) && is_sealed(protocol, later, upper, end);
	}
	return 0;
}

SEC("xdp")
int uplink(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	void *header = ethernet + 1;
	if (header > end)
		return pass();

	if (flat_networks && bpf_map_lookup_elem(&guest_macs, ethernet->h_dest))
		return redirect(ctx);

	__be16 ethertype = ethernet->h_proto;
	if (ethernet->h_dest[0] & 1) {
		if (!flat_networks || asks_for_host(ethertype, header, end))
			return pass();
		return redirect(ctx);
	}
	for (int tags = 0; tags < 2; tags++) {
		struct vlan_tag *tag = header;
		if (ethertype != bpf_htons(ETH_P_8021Q) && ethertype != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(tag + 1) > end)
			return pass();
		ethertype = tag->next;
		header = tag + 1;
	}
	return is_for_tunnel(ethertype, header, end) ? redirect(ctx) : pass();
}

char LICENSE[] SEC("license") = "GPL";
