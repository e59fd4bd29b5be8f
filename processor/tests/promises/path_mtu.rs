//! No longer packet goes to a host than the way there takes, for every guest and flow from the next batch on; to others all goes
//! as before.

use guestseal::path::outcome::DropReason;
use guestseal::wire::packet::Packet;

use crate::frames::*;
use crate::host::{Host, Options, overlay_with, policy};

const NARROW: u16 = 1400;
const THERE: [&str; 2] = ["192.0.2.2", "2001:db8::2"];

fn of_length(length: usize, ip6: bool, port: u16) -> Vec<u8> {
    let header = if ip6 { 40 } else { 20 };
    between(
        BLUE1,
        BLUE2,
        ip6,
        UDP,
        &udp(4000, port, &vec![7; length - header - 8]),
    )
}

/// What the guest was told would fit.
fn told(host: &mut Host, ip6: bool) -> usize {
    let told = host.at_guest(BLUE1);
    assert_eq!(told.len(), 1, "{:?}", host.outcomes());
    let message = Packet::parse(&told[0]).unwrap();
    assert_eq!(message.icmp, Some(if ip6 { (2, 0) } else { (3, 4) }));
    let body = &told[0][usize::from(message.l4_offset)..];
    usize::from(u16::from_be_bytes([body[6], body[7]]))
}

/// Tunnels and overlays, sealed and bare, over both families.
#[test]
fn what_the_way_does_not_take_is_dropped_and_told() {
    let vxlan = overlay_with("", "");
    for (policy, port, around) in [
        (&policy(), 4001, 54),
        (&vxlan, 4001, 84),
        // Bare packets go between the hosts' first addresses.
        (&vxlan, 53, 50),
    ] {
        for tunnel_over_ip6 in [false, true].into_iter().take(if port == 53 { 1 } else { 2 }) {
            let options = Options {
                tunnel: true,
                tunnel_over_ip6,
                ..Options::default()
            };
            let mut one = Host::new(policy, 0, &options);
            let around = around + if tunnel_over_ip6 { 20 } else { 0 };
            for ip6 in [false, true] {
                let send = |one: &mut Host, length: usize| {
                    one.guest_sends(BLUE1, &of_length(length, ip6, port));
                    one.on_wire()
                };
                // The flow is known when the way becomes narrow.
                assert_eq!(send(&mut one, 1500 - around).len(), 1, "the uplink takes it");
                one.finds_path_mtu(1, THERE[usize::from(tunnel_over_ip6)], NARROW);
                let dropped = one.dropped(DropReason::TooLong);
                let most = usize::from(NARROW) - around;
                assert_eq!(send(&mut one, most + 1).len(), 0);
                assert_eq!(one.dropped(DropReason::TooLong), dropped + 1);
                assert_eq!(told(&mut one, ip6), most);
                let wire = send(&mut one, most);
                assert_eq!(wire[0].len() - 14, usize::from(NARROW), "the longest that passes");
                // What is known of another address says nothing of this one.
                one.finds_path_mtu(1, THERE[usize::from(!tunnel_over_ip6)], NARROW);
                assert_eq!(send(&mut one, 1500 - around).len(), 1);
                one.finds_path_mtu(1, THERE[usize::from(tunnel_over_ip6)], 9000);
                assert_eq!(
                    send(&mut one, 1501 - around).len(),
                    0,
                    "more than the uplink takes"
                );
                assert_eq!(told(&mut one, ip6), 1500 - around);
            }
            one.assert_accounted();
        }
    }
}

/// Whichever host knows: what it sends is lowered as it leaves, and on overlays what it receives, too.
#[test]
fn what_tcp_offers_fits_the_way() {
    let options = Options {
        tunnel: true,
        ..Options::default()
    };
    let syn = |mss: u16| {
        let mut segment = tcp(4000, 80, SYN, b"");
        segment[12] = 0x60;
        segment.extend([2, 4]);
        segment.extend(mss.to_be_bytes());
        between(BLUE1, BLUE2, false, TCP, &segment)
    };
    for (policy, is_overlay, around) in [(policy(), false, 54), (overlay_with("", ""), true, 84)] {
        for sender_knows in [true, false].into_iter().take(1 + usize::from(is_overlay)) {
            let (mut one, mut two) = (Host::new(&policy, 0, &options), Host::new(&policy, 1, &options));
            if sender_knows {
                one.finds_path_mtu(1, THERE[0], NARROW);
            } else {
                two.finds_path_mtu(0, "192.0.2.1", NARROW);
            }
            one.guest_sends(BLUE1, &syn(1460));
            two.wire_brings(0, &one.on_wire()[0]);
            let got = two.at_guest(BLUE2);
            let offered = u16::from_be_bytes(*got[0].last_chunk().unwrap());
            assert_eq!(offered, NARROW - around - 40, "overlay {is_overlay}");
        }
    }
}
