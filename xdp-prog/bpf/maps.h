/* The maps that both programs have: where frames go, and what is counted.
 *
 * Counters are per CPU and only ever grow; the loader adds them up. The order of enum counter is that of
 * `Counters` in src/loader.rs.
 */
#ifndef GUESTSEAL_MAPS_H
#define GUESTSEAL_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* Receive queues of one interface that can carry a socket. */
#define QUEUES 256

/* Receive queue -> AF_XDP socket. The kernel removes a socket when its last descriptor closes, so that a
 * killed process leaves an empty map, and an empty map means drop. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

enum counter {
	COUNTER_REDIRECTED, /* handed to a socket; the socket's own ring may still refuse it */
	COUNTER_NO_SOCKET,  /* dropped: no socket serves the queue it came by */
	COUNTER_NO_STAMP,   /* dropped: the driver gives no room for the stamp */
	COUNTER_PASSED,     /* left to the kernel (uplink only) */
	COUNTER_HANDSHAKES, /* dropped: more to the port of handshakes than is taken (uplink only) */
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
	__u64 *value = bpf_map_lookup_elem(&counters, &which);

	if (value)
		*value += 1;
}

#endif
