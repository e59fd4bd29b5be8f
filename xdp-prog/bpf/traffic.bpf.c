/* The two ends of a measurement: a generator, which is run by BPF_PROG_TEST_RUN with live frames, and a sink.
 *
 * The generator sends the packets of a list in turns, out of one interface, as fast as it can or at the times of a plan.
 * A packet that begins Ethernet, IPv4, UDP, MAGIC is stamped with the time at which the plan wanted it to leave, not that
 * at which it did: a generator that is held up makes the packets late, and the sink sees it.
 *
 * The sink counts what is UDP or ESP over IPv4 and sorts the age of what is stamped (also inside ESP that only
 * authenticates, in transport mode) into buckets, 32 for each power of two of nanoseconds. Everything else passes. Times are of CLOCK_MONOTONIC, in host byte order.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* The longest packet; as in src/traffic.rs. */
#define LONGEST 1536
/* Where the mark and the time stand in a stamped packet: behind Ethernet, IPv4 without options, and UDP. */
#define MAGIC_AT 42
#define STAMP_AT 46
/* SPI, sequence number and initialisation vector, in transport mode in front of UDP. */
#define ESP_HEADER 16
#define MAGIC 0x46505347 /* "GSPF", read as a little-endian number */
#define BUCKETS 1216
/* Looks at the clock until a packet is due: some 20 ms. */
#define PATIENCE (1 << 20)

struct packet {
	__u32 length;
	__u8 bytes[LONGEST];
};

/* The packets that are sent in turns; the loader says how many. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} packets SEC(".maps");

struct plan {
	__u64 sent;     /* packets so far */
	__u64 start;    /* when the first one is due */
	__u64 interval; /* between two, in 1/1024 ns; 0: as fast as it goes */
	__u32 count;    /* packets of the list */
	__u32 stamped;  /* whether they have the mark */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct plan);
} plans SEC(".maps");

/* The interface that the generator sends out of. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} exits SEC(".maps");

enum seen {
	SEEN_PACKETS,
	SEEN_BYTES,
	SEEN,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SEEN);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BUCKETS);
	__type(key, __u32);
	__type(value, __u64);
} ages SEC(".maps");

static long not_yet(__u32 turn, void *due)
{
	(void)turn;
	return bpf_ktime_get_ns() >= *(__u64 *)due;
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	__u32 zero = 0, turn, length;
	struct plan *plan = bpf_map_lookup_elem(&plans, &zero);
	struct packet *packet;
	__u64 due;

	if (!plan || !plan->count)
		return XDP_DROP;
	turn = plan->sent % plan->count;
	packet = bpf_map_lookup_elem(&packets, &turn);
	if (!packet)
		return XDP_DROP;
	length = packet->length;
	if (length < ETH_HLEN || length > LONGEST)
		return XDP_DROP;
	if (bpf_xdp_adjust_tail(ctx, (int)length - (int)bpf_xdp_get_buff_len(ctx)) ||
	    bpf_xdp_store_bytes(ctx, 0, packet->bytes, length))
		return XDP_DROP;
	due = bpf_ktime_get_ns();
	if (plan->interval) {
		due = plan->start + (plan->sent * plan->interval >> 10);
		bpf_loop(PATIENCE, not_yet, &due, 0);
	}
	if (plan->stamped && bpf_xdp_store_bytes(ctx, STAMP_AT, &due, sizeof(due)))
		return XDP_DROP;
	plan->sent++;
	return bpf_redirect_map(&exits, 0, XDP_DROP);
}

static __always_inline __u32 log2_of(__u64 value)
{
	__u32 log = 0;

#pragma unroll
	for (int bits = 32; bits; bits >>= 1) {
		if (value >> bits) {
			value >>= bits;
			log += bits;
		}
	}
	return log;
}

/* As `bucket_end` in src/traffic.rs reads it. */
static __always_inline __u32 bucket_of(__u64 nanoseconds)
{
	__u32 log, bucket;

	if (nanoseconds < 32)
		return nanoseconds;
	log = log2_of(nanoseconds);
	bucket = (log - 4) * 32 + ((nanoseconds >> (log - 5)) & 31);
	return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static __always_inline void add(void *map, __u32 which, __u64 much)
{
	__u64 *value = bpf_map_lookup_elem(map, &which);

	if (value)
		*value += much;
}

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = data;
	struct iphdr *ip = (void *)(ethernet + 1);
	__u8 *mark;
	__u32 magic;
	__u64 due, now;

	if ((void *)(ip + 1) > end || ethernet->h_proto != bpf_htons(ETH_P_IP) ||
	    (ip->protocol != IPPROTO_UDP && ip->protocol != IPPROTO_ESP))
		return XDP_PASS;
	add(&seen, SEEN_PACKETS, 1);
	add(&seen, SEEN_BYTES, end - data);
	/* What ESP only authenticates can be read behind its header. */
	mark = data + MAGIC_AT + (ip->protocol == IPPROTO_ESP ? ESP_HEADER : 0);
	if ((void *)(mark + sizeof(magic) + sizeof(due)) > end)
		return XDP_DROP;
	__builtin_memcpy(&magic, mark, sizeof(magic));
	if (magic == MAGIC) {
		__builtin_memcpy(&due, mark + sizeof(magic), sizeof(due));
		now = bpf_ktime_get_ns();
		add(&ages, bucket_of(now > due ? now - due : 0), 1);
	}
	return XDP_DROP;
}

/* No helper used here asks for a GPL program. */
char LICENSE[] SEC("license") = "Apache-2.0";
