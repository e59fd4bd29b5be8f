/* The ingress of a guest port: everything that the guest sends goes to Guestseal, or nowhere. */
#include "maps.h"

SEC("xdp")
int guest(struct xdp_md *ctx)
{
	return redirect(ctx);
}

char LICENSE[] SEC("license") = "GPL";
