//! The generator delivers what it says, and the sink sees all of it.

mod namespace;

use guestseal_xdp::{Attached, Attachment, Generator, MAGIC, ModeChoice, Pace, Program, Seen, Sink, XdpMode};
use libtest_mimic::Failed;
use namespace::{Body, Case, ifindex, ip};

fn main() {
    let tests: [(&str, Body); 4] = [
        ("what_leaves_arrives", what_leaves_arrives),
        ("sizes_take_turns", sizes_take_turns),
        ("a_plan_is_kept", a_plan_is_kept),
        ("only_what_is_marked_has_an_age", only_marked),
    ];
    namespace::run(
        tests
            .map(|(name, body)| -> Case { (name.to_owned(), Box::new(body)) })
            .into(),
    );
}

fn what_leaves_arrives() -> Result<(), Failed> {
    let (sink, exit) = wire()?;
    let (sent, _) = Generator::load(exit, &[packet(64, true)])?.send(10_000, Pace::Full)?;
    assert_eq!(sent, 10_000);
    let all = Seen {
        packets: 10_000,
        bytes: 640_000,
    };
    assert_eq!(sink.seen()?, all);
    Ok(())
}

fn sizes_take_turns() -> Result<(), Failed> {
    let (sink, exit) = wire()?;
    let list = [64, 1414, 590].map(|size| packet(size, false));
    Generator::load(exit, &list)?.send(3000, Pace::Full)?;
    assert_eq!(sink.seen()?.bytes, 1000 * (64 + 1414 + 590));
    Ok(())
}

fn a_plan_is_kept() -> Result<(), Failed> {
    let (sink, exit) = wire()?;
    let (sent, seconds) =
        Generator::load(exit, &[packet(64, true)])?.send(2000, Pace::PerSecond(10_000.0))?;
    assert_eq!(sent, 2000);
    // The last one is due 199.9 ms after the first.
    assert!(seconds >= 0.1999, "{seconds} s");
    let ages = sink.ages()?;
    assert_eq!(ages.iter().map(|(_, count)| count).sum::<u64>(), 2000);
    // Nothing is older than the whole run: the stamps are times of this clock.
    assert!(
        ages.iter().all(|(age, _)| *age as f64 <= seconds * 1.1e9),
        "{ages:?}"
    );
    Ok(())
}

fn only_marked() -> Result<(), Failed> {
    let (sink, exit) = wire()?;
    Generator::load(exit, &[packet(64, false)])?.send(100, Pace::Full)?;
    assert_eq!((sink.seen()?.packets, sink.ages()?.len()), (100, 0));
    Ok(())
}

/// A veth pair with a sink at one end; gives the index of the other.
fn wire() -> Result<(Attached<Sink>, u32), Failed> {
    ip("link add near type veth peer name far");
    ip("link set near up");
    ip("link set far up");
    let attachment = Attachment {
        ifindex: ifindex("far"),
        mode: ModeChoice::Only(XdpMode::Native),
        pins: None,
    };
    Ok((Sink::load()?.attach(attachment)?, ifindex("near")))
}

/// Ethernet, IPv4, UDP.
fn packet(size: usize, marked: bool) -> Vec<u8> {
    let mut packet = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45];
    packet.resize(23, 0);
    packet.push(17);
    packet.resize(42, 0);
    packet.extend(if marked { MAGIC } else { [0; 4] });
    packet.resize(size, 0);
    packet
}
