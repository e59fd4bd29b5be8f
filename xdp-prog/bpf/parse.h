/* Bounded steps over the headers of a frame. Nothing here is guessed: a header that is not there in full is
 * "not found", and the caller says what that means.
 */
#ifndef GUESTSEAL_PARSE_H
#define GUESTSEAL_PARSE_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define PROTOCOL_HOP_BY_HOP  0
#define PROTOCOL_UDP         17
#define PROTOCOL_ROUTING     43
#define PROTOCOL_FRAGMENT    44
#define PROTOCOL_ESP         50
#define PROTOCOL_ICMPV6      58
#define PROTOCOL_DESTINATION 60

#define IPV4_OFFSET_MASK 0x1fff
#define IPV6_OFFSET_MASK 0xfff8

/* IEEE 802.1ad allows two tags; more are not looked behind. */
#define VLAN_TAGS 2
/* RFC 8200 4.1 recommends at most six extension headers before the transport's. */
#define EXTENSION_HEADERS 8

/* An IPv4 or IPv6 address; IPv4 as ::ffff:a.b.c.d (RFC 4291 2.5.5.2), so that one map holds both. */
struct address {
	__u8 bytes[16];
};

struct mac {
	__u8 bytes[ETH_ALEN];
};

struct vlan_tag {
	__be16 control;
	__be16 ethertype;
};

/* ARP for IPv4 over Ethernet (RFC 826), behind the Ethernet header. */
struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__u8 sender_address[4];
	__u8 target_mac[ETH_ALEN];
	__u8 target_address[4];
} __attribute__((packed));
#define ARP_REQUEST 1

/* Neighbour solicitation (RFC 4861 4.3) from the ICMPv6 header on. */
struct solicitation {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 reserved;
	struct address target;
} __attribute__((packed));
#define NEIGHBOUR_SOLICITATION 135

struct extension {
	__u8 next;
	__u8 length; /* in units of 8 bytes, the first not counted */
};

struct fragment {
	__u8 next;
	__u8 reserved;
	__be16 offset;
	__be32 identification;
};

/* What follows the IP header and its extensions. */
struct payload {
	void *start;
	__u8 protocol;
	bool later_fragment; /* a fragment that is not the first: `start` is not the protocol's header */
};

static __always_inline void from_ipv4(struct address *address, const void *ipv4)
{
	__builtin_memset(address->bytes, 0, 10);
	address->bytes[10] = 0xff;
	address->bytes[11] = 0xff;
	__builtin_memcpy(&address->bytes[12], ipv4, 4);
}

/* The ethertype behind up to VLAN_TAGS tags, and in *behind what it announces. */
static __always_inline __be16 skip_vlan(struct ethhdr *ethernet, void *end, void **behind)
{
	__be16 ethertype = ethernet->h_proto;
	void *at = ethernet + 1;

#pragma unroll
	for (int i = 0; i < VLAN_TAGS; i++) {
		struct vlan_tag *tag = at;

		if (ethertype != bpf_htons(ETH_P_8021Q) && ethertype != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(tag + 1) > end)
			break;
		ethertype = tag->ethertype;
		at = tag + 1;
	}
	*behind = at;
	return ethertype;
}

static __always_inline bool ipv4_payload(struct iphdr *ip, void *end, struct payload *payload)
{
	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return false;
	payload->start = (void *)ip + ip->ihl * 4;
	payload->protocol = ip->protocol;
	payload->later_fragment = ip->frag_off & bpf_htons(IPV4_OFFSET_MASK);
	return true;
}

/* False where the chain is cut short or longer than EXTENSION_HEADERS. */
static __always_inline bool ipv6_payload(struct ipv6hdr *ip, void *end, struct payload *payload)
{
	void *at = ip + 1;
	__u8 next;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return false;
	next = ip->nexthdr;
	payload->later_fragment = false;
#pragma unroll
	for (int i = 0; i <= EXTENSION_HEADERS; i++) {
		if (next == PROTOCOL_FRAGMENT) {
			struct fragment *fragment = at;

			if ((void *)(fragment + 1) > end)
				return false;
			next = fragment->next;
			at = fragment + 1;
			if (fragment->offset & bpf_htons(IPV6_OFFSET_MASK)) {
				/* The rest of the chain, if any, is in the first fragment. */
				payload->later_fragment = true;
				break;
			}
		} else if (next == PROTOCOL_HOP_BY_HOP || next == PROTOCOL_ROUTING ||
			   next == PROTOCOL_DESTINATION) {
			struct extension *extension = at;

			if (i == EXTENSION_HEADERS || (void *)(extension + 1) > end)
				return false;
			next = extension->next;
			at += (extension->length + 1) * 8;
		} else {
			break;
		}
	}
	payload->start = at;
	payload->protocol = next;
	return true;
}

#endif
