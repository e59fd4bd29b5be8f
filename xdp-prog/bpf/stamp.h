/* Stamps a frame with its time of arrival and hands it to the socket of its queue.
 *
 * The stamp is bpf_ktime_get_ns() (CLOCK_MONOTONIC, nanoseconds, host byte order) in the 8 bytes in front of
 * what was received. They are metadata, or, where the program lengthens the frame's head for headers to be
 * put there, the last ones of that head. Every frame that a socket receives has it: one that cannot be stamped
 * is dropped, because a reader could not tell its absence from a time.
 */
#ifndef GUESTSEAL_STAMP_H
#define GUESTSEAL_STAMP_H

#include <stdbool.h>
#include "maps.h"

/* Pointers into the packet are void after this. */
static __always_inline bool stamp(struct xdp_md *ctx)
{
	__u64 *arrival;

	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*arrival)))
		return false;
	arrival = (void *)(long)ctx->data_meta;
	if ((void *)(arrival + 1) > (void *)(long)ctx->data)
		return false;
	*arrival = bpf_ktime_get_ns();
	return true;
}

/* Puts so many bytes, at least 8, in front of the frame, and stamps it there. What else they hold is left as it
 * is: whoever sends the frame writes over all of it. Pointers into the packet are void after this. */
static __always_inline bool stamp_in_head(struct xdp_md *ctx, __u32 head)
{
	__u64 *arrival;

	if (bpf_xdp_adjust_head(ctx, -(int)head))
		return false;
	arrival = (void *)(long)ctx->data + head - sizeof(*arrival);
	if ((void *)(arrival + 1) > (void *)(long)ctx->data_end)
		return false;
	*arrival = bpf_ktime_get_ns();
	return true;
}

/* The end of every frame that is Guestseal's: the socket, or nothing. Never the kernel's stack. */
static __always_inline int hand_over(struct xdp_md *ctx, __u32 head)
{
	long verdict;

	if (!(head ? stamp_in_head(ctx, head) : stamp(ctx))) {
		count(COUNTER_NO_STAMP);
		return XDP_DROP;
	}
	/* The flags argument is the verdict where the map has no socket for the queue. */
	verdict = bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_DROP);
	count(verdict == XDP_REDIRECT ? COUNTER_REDIRECTED : COUNTER_NO_SOCKET);
	return verdict;
}

#endif
