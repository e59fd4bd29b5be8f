//! Ways that eat long packets and tell nobody, each direction by itself, wider and narrower as time goes on: how long packets
//! may be follows.

use std::collections::HashMap;
use std::time::Duration;

use guestseal::keys::handshake::pmtu::FLOOR;
use guestseal::keys::handshake::settings::Settings;

use super::host::UPLINK_MTU;
use super::world::{Weather, World};
use super::{MILLISECOND, SECOND};

/// The longest time for which more is used than passes: until the size in use is probed again (5 s) after a probe of another
/// size that was under way (3 s), three tries of it (3 s), the report that something was sealed, and the way there.
const STATED: Duration = Duration::from_millis(11_500);

/// Lets time pass while every host sends to every other; nowhere may more be used than passes for longer than is stated.
fn pass(world: &mut World, time: Duration, too_long_since: &mut HashMap<(usize, usize), Duration>) {
    let end = world.at + time;
    while world.at < end {
        for (from, to) in ways(world) {
            world.send(from, to, 0);
        }
        world.pass(100 * MILLISECOND);
        for way in ways(world) {
            let used = world.hosts[way.0].path_mtu(way.1);
            assert!((FLOOR..=UPLINK_MTU).contains(&used));
            let width = world.widths.get(&way).copied().unwrap_or(UPLINK_MTU);
            if used <= width {
                too_long_since.remove(&way);
                continue;
            }
            let since = *too_long_since.entry(way).or_insert(world.at);
            assert!(
                world.at - since <= STATED,
                "{way:?}: {used} used, {width} wide, since {:?}",
                world.at - since
            );
        }
    }
}

fn ways(world: &World) -> Vec<(usize, usize)> {
    let hosts = world.shape.0;
    let all = (0..hosts).flat_map(|from| (0..hosts).map(move |to| (from, to)));
    all.filter(|(from, to)| from != to).collect()
}

#[test]
fn it_follows_down_and_up_whatever_the_network_eats() {
    for seed in 1..=12 {
        let settings = Settings {
            raise_after: 20 * SECOND,
            rekey_after: 15 * SECOND,
            ..Settings::default()
        };
        let mut world = World::new(seed, (3, 1, 2), settings);
        world.weather = Weather::LATE;
        let mut choices = world.seed.split();
        let mut since = HashMap::new();
        for turn in 0..12 {
            for way in ways(&world) {
                if choices.one_in(2) {
                    let widths = u64::from(UPLINK_MTU - FLOOR) + 1;
                    let width = FLOOR + choices.below(widths) as u16;
                    world.widths.insert(way, width);
                }
            }
            let restarts = choices.one_in(4);
            if restarts {
                let host = choices.below(3) as usize;
                world.restart(host, 0);
                since.retain(|(from, _), _| *from != host);
            }
            let time = SECOND * (choices.below(30) as u32 + 1);
            pass(&mut world, time, &mut since);
            if turn % 4 == 3 {
                // Time enough for a search, the raise time and another search.
                pass(&mut world, 75 * SECOND, &mut since);
                for way in ways(&world) {
                    let width = world.widths.get(&way).copied().unwrap_or(UPLINK_MTU);
                    let used = world.hosts[way.0].path_mtu(way.1);
                    assert_eq!(used, width / 4 * 4, "seed {seed} turn {turn} {way:?}");
                }
            }
        }
        eprintln!("seed {seed}: {} probes in {:?}", world.probes, world.at);
    }
}

/// A network that loses one packet in ten at random is no narrow one for long.
#[test]
fn random_loss_does_not_keep_it_down() {
    for seed in 1..=8 {
        let mut world = World::new(seed, (2, 1, 1), Settings::default());
        world.weather = Weather {
            loss: 100,
            ..Weather::LATE
        };
        let (mut turns, mut full) = (0, 0);
        for _ in 0..6000 {
            world.send(0, 1, 0);
            world.pass(100 * MILLISECOND);
            turns += 1;
            full += u32::from(world.hosts[0].path_mtu(1) >= UPLINK_MTU - 8);
        }
        assert!(full * 10 > turns * 9, "seed {seed}: {full} of {turns}");
    }
}

/// Whoever sees the probes learns nothing by sending them again, cut or changed: the size in use stays what passes.
#[test]
fn probes_that_are_replayed_or_cut_change_nothing() {
    let mut world = World::new(4, (2, 1, 1), Settings::default());
    world.widths.insert((0, 1), 1400);
    let mut since = HashMap::new();
    for _ in 0..300 {
        for _ in 0..5 {
            world.replay();
        }
        pass(&mut world, 100 * MILLISECOND, &mut since);
    }
    assert_eq!(world.hosts[0].path_mtu(1), 1400);
    assert_eq!(world.hosts[1].path_mtu(0), 1500);
}
