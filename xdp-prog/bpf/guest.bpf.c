/* The program of a guest port: everything that the guest sends goes to Guestseal.
 *
 * It reads no byte of the frame, so nothing that a guest sends can change the verdict. With no live socket
 * the frame is dropped: a guest's traffic never falls through to the host's own stack.
 */
#include "stamp.h"

SEC("xdp.frags")
int guest_port(struct xdp_md *ctx)
{
	return hand_over(ctx);
}

/* No helper used here asks for a GPL program. */
char LICENSE[] SEC("license") = "Apache-2.0";
