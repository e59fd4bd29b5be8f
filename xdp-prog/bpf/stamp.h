/* The time of arrival, in 8 bytes of metadata right before the packet: ns of CLOCK_MONOTONIC. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* Returns 0, or a negative error if the driver gives no room for metadata. Invalidates packet pointers. */
static __always_inline int stamp(struct xdp_md *ctx)
{
	int failed = bpf_xdp_adjust_meta(ctx, -(int)sizeof(__u64));
	if (failed)
		return failed;
	__u64 *meta = (void *)(long)ctx->data_meta;
	if ((void *)(meta + 1) > (void *)(long)ctx->data)
		return -1;
	*meta = bpf_ktime_get_ns();
	return 0;
}
