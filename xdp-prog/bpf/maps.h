/* Maps that both programs have, and the redirect that ends in one of them. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "stamp.h"

#define MAX_QUEUES 256

/* AF_XDP sockets by receive queue. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

/* What the program did, by the numbers below; loader.rs has the same. */
enum counter {
	REDIRECTED,	/* to a live socket */
	NO_SOCKET,	/* dropped: no socket on the queue */
	NO_STAMP,	/* dropped: no room for the time of arrival */
	PASSED,		/* to the kernel */
	COUNTERS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 which)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &which);
	if (counter)
		(*counter)++;
}

static __always_inline int pass(void)
{
	count(PASSED);
	return XDP_PASS;
}

/* To the socket of the queue; without one the packet is dropped, never passed: fail closed. */
static __always_inline int redirect(struct xdp_md *ctx)
{
	if (stamp(ctx)) {
		count(NO_STAMP);
		return XDP_DROP;
	}
	int verdict = bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_DROP);
	count(verdict == XDP_REDIRECT ? REDIRECTED : NO_SOCKET);
	return verdict;
}
