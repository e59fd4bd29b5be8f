//! Two hosts with real kernels, sockets and packets, in namespaces: each test has a wire, hosts and guests of its own.
//! Without root or AF_XDP every test counts as ignored, never as passed.

mod net;

mod control;
mod devices;
mod foreign;
mod forge;
mod frames;
mod in_place;
mod key_manager;
mod key_usage;
mod killed;
mod measured;
mod mirrors;
mod moves;
mod offloads;
mod overlay;
mod overload;
mod path_mtu;
mod ports;
mod quarantine;
mod reload;
mod session_ways;
mod sessions;
mod shared;
mod shared_policy;
mod sources;
mod taps;
mod traffic;
mod vlan;
mod ways;

use libtest_mimic::{Arguments, Failed, Trial};
use net::Result;

type Body = fn() -> Result<()>;

const TESTS: &[(&str, Body)] = &[
    ("overlay::tenants_of_equal_addresses_never_meet", overlay::tenants),
    ("overlay::every_size_and_bulk", overlay::sizes),
    ("in_place::an_overlay_at_every_size_and_bulk", in_place::overlay),
    ("in_place::flat_networks_in_either_xdp_mode", in_place::flat),
    ("overlay::linux_vxlan_is_the_far_end", overlay::linux_vxlan),
    ("overlay::routes_are_followed", overlay::routes),
    ("ways::another_mac_is_met_at_once", ways::next_hop),
    ("overlay::scapy_opens_and_seals", overlay::scapy),
    ("vlan::each_of_a_trunk_is_a_port_of_its_own", vlan::trunk),
    (
        "vlan::tags_fragments_and_extension_headers_within_a_network",
        vlan::within_a_network,
    ),
    ("frames::too_long_ones_are_counted", frames::too_long),
    (
        "frames::an_uplink_of_9000_bytes_carries_all_of_them",
        frames::jumbo,
    ),
    (
        "traffic::both_modes_both_families_and_the_hosts_own",
        traffic::both_modes,
    ),
    ("traffic::generic_xdp", traffic::generic),
    ("traffic::a_policy_of_many_files", traffic::many_files),
    (
        "mirrors::suricata_sees_what_the_wire_does_not_show",
        mirrors::suricata_listens,
    ),
    (
        "mirrors::without_a_listener_only_copies_are_lost",
        mirrors::away_and_back,
    ),
    (
        "mirrors::an_interface_that_leaks_is_refused",
        mirrors::leaks_are_refused,
    ),
    (
        "offloads::checksums_and_segments_are_left_to_the_card",
        offloads::left_to_the_card,
    ),
    (
        "offloads::what_would_be_lost_is_refused_until_turned_off",
        offloads::refused,
    ),
    ("offloads::fixed_until_the_end_and_after_sigkill", offloads::fixed),
    ("taps::what_is_left_to_the_host", taps::left_to_the_host),
    ("traffic::two_queues_cross", traffic::two_queues),
    (
        "traffic::an_orderly_end_accounts_for_everything",
        traffic::orderly_end,
    ),
    ("traffic::a_second_process_is_refused", traffic::second_process),
    (
        "traffic::a_queue_that_is_let_go_is_waited_for",
        traffic::queue_of_another,
    ),
    ("traffic::the_demo_agrees_and_leaves_nothing", traffic::demo),
    (
        "traffic::an_interrupted_demo_leaves_nothing",
        traffic::interrupted_demo,
    ),
    (
        "foreign::what_is_sealed_opens_elsewhere",
        foreign::opens_elsewhere,
    ),
    (
        "foreign::what_is_sealed_elsewhere_is_delivered",
        foreign::delivered,
    ),
    (
        "killed::no_plaintext_no_cleanup_no_nonce_twice",
        killed::under_load,
    ),
    (
        "killed::what_is_acknowledged_has_been_synced",
        killed::acknowledged_is_synced,
    ),
    ("devices::uplink_down_and_up_under_load", devices::uplink_down),
    ("devices::uplink_deleted_under_load", devices::uplink_deleted),
    ("devices::guest_port_deleted_and_back", devices::guest_port),
    ("measured::over_veths_by_everything_that_carries", measured::veth),
    (
        "sessions::the_first_packet_waits_and_arrives",
        sessions::first_packet,
    ),
    ("sessions::rekey_each_second_loses_nothing", sessions::rekey),
    (
        "sessions::rotation_loses_nothing_and_revocation_holds_at_once",
        sessions::rotation_and_revocation,
    ),
    ("sessions::either_side_restarts", sessions::restarts),
    (
        "quarantine::the_last_guest_under_a_key_ends_its_session",
        quarantine::the_last_guest_ends_the_session,
    ),
    (
        "quarantine::hosts_that_share_end_a_session_together",
        quarantine::hosts_that_share_end_it_together,
    ),
    (
        "path_mtu::a_way_that_eats_long_packets_is_followed_down_and_up",
        path_mtu::followed,
    ),
    ("session_ways::overlays_also_in_udp", session_ways::overlays),
    ("session_ways::ip6_between_the_hosts", session_ways::over_ip6),
    (
        "session_ways::two_workers_on_each_host",
        session_ways::two_workers,
    ),
    ("key_manager::its_keys_are_followed", key_manager::followed),
    (
        "key_manager::it_makes_what_follows_a_key_that_is_used_up",
        key_manager::ordered,
    ),
    (
        "key_usage::through_restarts_until_it_is_used_up",
        key_usage::used_up,
    ),
    (
        "sessions::forged_handshakes_cost_traffic_little",
        sessions::forged_handshakes,
    ),
    (
        "control::what_was_answered_outlives_sigkill",
        control::acknowledged,
    ),
    (
        "control::garbage_costs_the_traffic_nothing",
        control::garbage_beside_traffic,
    ),
    ("control::each_tag_is_enforced", control::tags_are_enforced),
    (
        "reload::by_each_way_under_traffic_loses_nothing",
        reload::under_traffic,
    ),
    (
        "reload::what_is_wrong_changes_nothing_and_is_told",
        reload::refused,
    ),
    (
        "reload::a_guest_that_vanishes_and_a_key_that_is_not_named",
        reload::vanished,
    ),
    (
        "ports::taps_of_any_name_by_hook_and_by_hand",
        ports::by_hook_and_by_hand,
    ),
    ("ports::a_guest_of_no_file_comes_and_goes", ports::of_no_file),
    (
        "moves::traffic_follows_between_three_hosts",
        moves::between_three_hosts,
    ),
    ("shared::hosts_know_who_is_alive", shared::liveness),
    (
        "shared::tags_and_hands_hold_on_every_host",
        shared::tags_and_hands,
    ),
    ("shared::what_was_missed_is_caught_up", shared::catching_up),
    ("shared::a_move_told_to_one_host_is_made_by_all", shared::moves),
    ("shared::who_may_tell_and_what_cannot_be", shared::who_may),
    ("shared::an_ordered_stop_is_known_at_once", shared::ordered_stop),
    (
        "shared::a_watch_that_is_given_up_as_compacted_begins_anew",
        shared::compacted,
    ),
    (
        "shared_policy::a_push_reaches_every_host_under_traffic",
        shared_policy::under_traffic,
    ),
    (
        "shared_policy::what_is_wrong_changes_nothing_and_is_told",
        shared_policy::refused,
    ),
    (
        "shared_policy::without_etcd_a_host_starts_with_what_it_had",
        shared_policy::without_etcd,
    ),
    ("shared_policy::who_may_write_it", shared_policy::who_may),
    (
        "sources::suricata_alerts_and_the_guest_is_in_quarantine",
        sources::suricata_alerts,
    ),
    (
        "sources::clamd_finds_and_the_guest_is_in_quarantine",
        sources::clamd_finds,
    ),
    (
        "sources::an_agent_in_a_guest_tells_of_its_flows",
        sources::agent_in_guest,
    ),
    ("sources::users_log_in_and_out_by_pam", sources::pam_logins),
    (
        "sources::a_signed_webhook_is_in_force_when_answered",
        sources::signed_webhook,
    ),
    (
        "overload::a_flood_is_counted_bounded_and_over_at_once",
        overload::flood,
    ),
];

fn main() {
    let mut arguments = Arguments::from_args();
    // A test waits about as long as it keeps CPUs busy.
    arguments.test_threads.get_or_insert(2);
    let missing = missing();
    if let Some(reason) = &missing {
        eprintln!("ignored: {reason}");
    }
    let trial = |(name, body): &(&str, Body)| {
        let body = *body;
        Trial::test(*name, move || {
            body().map_err(|error| Failed::from(error.to_string()))
        })
        .with_ignored_flag(missing.is_some())
    };
    libtest_mimic::run(&arguments, TESTS.iter().map(trial).collect()).exit();
}

/// Why real packets cannot be processed here.
fn missing() -> Option<&'static str> {
    use rustix::net::{AddressFamily, SocketType, socket};
    if !rustix::process::geteuid().is_root() {
        return Some("tests with real packets need root");
    }
    socket(AddressFamily::from_raw(44), SocketType::RAW, None).err()?;
    Some("this kernel has no AF_XDP (CONFIG_XDP_SOCKETS)")
}
