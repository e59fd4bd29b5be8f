/* The little that the uplink program must read of a packet. Every access is within data_end. */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* An IPv4 address stands as ::ffff:a.b.c.d. */
struct address {
	__u8 bytes[16];
};

struct arp_ip4 {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender_ip[4];
	__u8 target_mac[6];
	__u8 target_ip[4];
} __attribute__((packed));

struct vlan_tag {
	__be16 control;
	__be16 next;
};

struct fragment6 {
	__u8 next;
	__u8 reserved;
	__be16 offset;
	__be32 identification;
};

struct neighbour_solicitation {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__u32 reserved;
	__u8 target[16];
};

#define NEIGHBOUR_SOLICITATION 135
#define ARP_REQUEST 1

static __always_inline void mapped(struct address *to, const void *ip4)
{
	__builtin_memset(to->bytes, 0, 10);
	to->bytes[10] = 0xff;
	to->bytes[11] = 0xff;
	__builtin_memcpy(to->bytes + 12, ip4, 4);
}
