/* The program of a guest port: everything that the guest sends goes to Guestseal.
 *
 * It reads no byte of the frame, so nothing that a guest sends can change the verdict. With no live socket
 * the frame is dropped: a guest's traffic never falls through to the host's own stack.
 */
#include "stamp.h"

/* Bytes that go in front of every frame, for the headers that sealing puts there; 0 or at least 8. As the program,
 * so the socket: both are told the same, and it never changes. */
const volatile __u32 head = 0;

SEC("xdp.frags")
int guest_port(struct xdp_md *ctx)
{
	return hand_over(ctx, head);
}

/* No helper used here asks for a GPL program. */
char LICENSE[] SEC("license") = "Apache-2.0";
