//! Two revisions against each other: both are built, run in turns, and judged by the pairs.
//!
//! What is run is each revision's own `guestseal-perf pipeline`: cycles a packet without a kernel. The runs of a pair follow one
//! another at once, and every second pair begins with the other revision, so that what changes slowly on the machine falls
//! on both. HEAD is blamed for a row if the median ratio of its pairs is above the threshold and the sign-flip test, corrected
//! for the number of rows, calls that improbable by chance (below 1 in 100): see [`crate::statistics`].

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::process::{PerfError, check_interrupted, cpus, json_text, run};
use crate::statistics::{holm, interval, median, sign_flip};

/// How improbable it must be that an equal program looks so slow.
const IMPROBABLE: f64 = 0.01;

/// `guestseal-perf compare`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  guestseal-perf compare main HEAD\n  guestseal-perf compare HEAD .        the working tree, as it is\n\nEnds with 0 if nothing became slower than the threshold, 1 if something did."
)]
pub struct Options {
    /// The revision to compare with, as git names it, or `.` for the working tree
    base: String,
    /// The revision that is judged, likewise
    head: String,
    /// Per cent that a row may become slower
    #[arg(long, default_value_t = 3.0, value_name = "PERCENT")]
    threshold: f64,
    /// Pairs of runs
    #[arg(long, default_value_t = 96, value_name = "N", value_parser = clap::value_parser!(u32).range(8..=1000))]
    pairs: u32,
    /// Write every row as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where builds are kept, so that a revision is built once
    #[arg(long, default_value = "target/compare", value_name = "DIRECTORY")]
    builds: PathBuf,
    /// Arguments of `pipeline` for both
    #[arg(
        long,
        default_value = "--size 64,imix,1414 --rules 1000 --flows 1000 --sas 1 --frames 1024 --network flat --engine auto --bursts 300",
        value_name = "ARGUMENTS",
        allow_hyphen_values = true
    )]
    pipeline: String,
    /// Lets HEAD idle so many per cent of its time: shows that a slow-down is found
    #[arg(long, value_name = "PERCENT", hide = true)]
    slow_head: Option<f64>,
}

/// One row of both.
#[derive(Clone, Debug, Serialize)]
struct Judged {
    /// What tells the row from the others.
    row: String,
    /// Median cycles a packet.
    base: f64,
    /// Median cycles a packet.
    head: f64,
    /// Median of the pairs' ratios, HEAD to BASE.
    ratio: f64,
    /// Where that median lies with 95 %.
    interval: (f64, f64),
    /// Corrected probability that an equal program looks so slow.
    slower_by_chance: f64,
    /// Whether it is blamed.
    blamed: bool,
}

/// Compares; says whether HEAD passes.
///
/// # Errors
/// If a revision cannot be built or run.
pub fn compare(options: &Options) -> Result<bool, PerfError> {
    let builds =
        std::path::absolute(&options.builds).map_err(PerfError::io(options.builds.display().to_string()))?;
    std::fs::create_dir_all(&builds).map_err(PerfError::io(builds.display().to_string()))?;
    // Both are resolved before either is built: a name may come to mean another commit meanwhile.
    let hashes = [hash_of(&options.base)?, hash_of(&options.head)?];
    let base = built(hashes[0].as_deref(), &builds)?;
    let head = if hashes[0] == hashes[1] {
        base.clone()
    } else {
        built(hashes[1].as_deref(), &builds)?
    };
    let programs = [base, head];
    let shows_progress = std::io::stderr().is_terminal();
    let mut pairs: Vec<[Rows; 2]> = Vec::new();
    for number in 0..options.pairs {
        check_interrupted()?;
        if shows_progress {
            eprint!("\rpair {} of {}", number + 1, options.pairs);
        }
        let of = |which: usize| {
            let slow = options.slow_head.filter(|_| which == 1);
            figures(&programs[which], &options.pipeline, slow)
        };
        pairs.push(if number % 2 == 0 {
            let base = of(0)?;
            [base, of(1)?]
        } else {
            let head = of(1)?;
            [of(0)?, head]
        });
    }
    if shows_progress {
        eprintln!();
    }
    let judged = judge(&pairs, options.threshold / 100.0)?;
    println!(
        "{:<66} {:>7} {:>7} {:>8}  95 % of medians   by chance",
        "row", "base", "head", "change"
    );
    for one in &judged {
        println!(
            "{:<66} {:>7.1} {:>7.1} {:>+7.1}%  {:>+6.1}% {:>+6.1}%   {:.4}{}",
            one.row,
            one.base,
            one.head,
            (one.ratio - 1.0) * 100.0,
            (one.interval.0 - 1.0) * 100.0,
            (one.interval.1 - 1.0) * 100.0,
            one.slower_by_chance,
            if one.blamed { "  SLOWER" } else { "" }
        );
    }
    if let Some(path) = &options.json {
        let text = json_text("rows", &judged)?;
        std::fs::write(path, text).map_err(PerfError::io(path.display().to_string()))?;
    }
    let blamed = judged.iter().filter(|one| one.blamed).count();
    println!(
        "{} {} against {}: {blamed} of {} rows slower by more than {} %",
        if blamed == 0 { "ok:" } else { "SLOWER:" },
        options.head,
        options.base,
        judged.len(),
        options.threshold
    );
    Ok(blamed == 0)
}

/// Cycles a packet by what tells rows apart.
type Rows = BTreeMap<String, f64>;

fn judge(pairs: &[[Rows; 2]], threshold: f64) -> Result<Vec<Judged>, PerfError> {
    let Some([first, other]) = pairs.first() else {
        return Ok(Vec::new());
    };
    let common: Vec<&String> = first.keys().filter(|key| other.contains_key(*key)).collect();
    if common.is_empty() {
        return Err(PerfError::Wrong(format!(
            "the two revisions have no row in common: {:?} and {:?}",
            first.keys().next(),
            other.keys().next()
        )));
    }
    let of = |row: &str, which: usize| -> Vec<f64> {
        let figures = pairs.iter().filter_map(|pair| pair[which].get(row).copied());
        figures.collect()
    };
    let ratios: Vec<Vec<f64>> = common
        .iter()
        .map(|row| {
            of(row, 1)
                .iter()
                .zip(of(row, 0))
                .map(|(head, base)| head / base)
                .collect()
        })
        .collect();
    let chances = holm(&ratios.iter().map(|one| sign_flip(one)).collect::<Vec<_>>());
    let judged = common.iter().zip(&ratios).zip(chances);
    Ok(judged
        .map(|((row, ratios), slower_by_chance)| {
            let ratio = median(ratios);
            Judged {
                row: (*row).clone(),
                base: median(&of(row, 0)),
                head: median(&of(row, 1)),
                ratio,
                interval: interval(ratios),
                slower_by_chance,
                blamed: ratio > 1.0 + threshold && slower_by_chance < IMPROBABLE,
            }
        })
        .collect())
}

/// The commit of a revision; none for the working tree.
fn hash_of(revision: &str) -> Result<Option<String>, PerfError> {
    if revision == "." {
        return Ok(None);
    }
    run(Command::new("git")
        .args(["rev-parse", "--verify", "--quiet"])
        .arg(format!("{revision}^{{commit}}")))
    .map(Some)
    .map_err(|_| PerfError::Wrong(format!("{revision} is no revision of this repository")))
}

/// The program of a commit, built unless it is there, or of the working tree.
fn built(hash: Option<&str>, builds: &Path) -> Result<PathBuf, PerfError> {
    let kept = builds.join(hash.unwrap_or("of-working-tree"));
    if hash.is_some() && kept.exists() {
        return Ok(kept);
    }
    // One directory for all: what they have in common is built once.
    let target = builds.join("target");
    match hash {
        Some(hash) => build(&Worktree::new(hash, builds)?.0, &target, hash)?,
        None => build(Path::new("."), &target, "the working tree")?,
    }
    std::fs::copy(target.join("release").join("guestseal-perf"), &kept)
        .map_err(PerfError::io(kept.display().to_string()))?;
    Ok(kept)
}

/// The release build, but for link-time optimisation over everything, which takes minutes: both are built alike.
fn build(tree: &Path, target: &Path, revision: &str) -> Result<(), PerfError> {
    eprintln!("building {revision}");
    run(Command::new("cargo")
        .args(["build", "--release", "--quiet", "--package", "guestseal-perf"])
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", target)
        .env("CARGO_PROFILE_RELEASE_LTO", "thin")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "4")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false"))
    .map(|_| ())
}

/// A work tree of git, removed when dropped.
struct Worktree(PathBuf);

impl Worktree {
    fn new(hash: &str, builds: &Path) -> Result<Self, PerfError> {
        let path = builds.join(format!(
            "tree-{}-{}",
            &hash[..12.min(hash.len())],
            std::process::id()
        ));
        run(Command::new("git")
            .args(["worktree", "add", "--quiet", "--detach"])
            .arg(&path)
            .arg(hash))?;
        Ok(Self(path))
    }
}

impl Drop for Worktree {
    fn drop(&mut self) {
        let _ = run(Command::new("git")
            .args(["worktree", "remove", "--force"])
            .arg(&self.0));
    }
}

/// One run of a program on the last CPU.
fn figures(program: &Path, arguments: &str, slow: Option<f64>) -> Result<Rows, PerfError> {
    let cpu = cpus()?.last().copied().unwrap_or(0).to_string();
    let mut command = Command::new("taskset");
    command
        .args(["-c", &cpu])
        .arg(program)
        .args(["pipeline", "--json"]);
    command.args(arguments.split_whitespace());
    if let Some(percent) = slow {
        command.args(["--slow-down", &percent.to_string()]);
    }
    rows(&run(&mut command)?)
}

/// What `pipeline --json` has printed.
fn rows(text: &str) -> Result<Rows, PerfError> {
    let rows: Vec<Value> = serde_json::from_str(text).map_err(|error| malformed("figures", &error))?;
    let name = |row: &Value| {
        let word = |key: &str| {
            let value = row.get(key)?;
            let value = value.as_str().map_or(value.to_string(), str::to_owned);
            // Revisions before there were others say nothing.
            if (key, value.as_str()) == ("action", "encrypt") {
                return None;
            }
            Some(match key {
                "direction" | "network" | "action" | "engine" => value,
                _ => format!("{key} {value}"),
            })
        };
        let keys = [
            "direction",
            "network",
            "action",
            "size",
            "rules",
            "flows",
            "sas",
            "frames",
            "engine",
        ];
        keys.into_iter().filter_map(word).collect::<Vec<_>>().join(" ")
    };
    let row = |row: &Value| Some((name(row), row.get("cycles_per_packet")?.as_f64()?));
    Ok(rows.iter().filter_map(row).collect())
}

fn malformed(what: &str, error: &serde_json::Error) -> PerfError {
    PerfError::Malformed {
        what: what.into(),
        why: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classbench::Dice;

    /// Rows as the benchmark prints them, with noise of its kind.
    fn run_of(dice: &mut Dice, slow: f64) -> Rows {
        let mut noise = |cycles: f64| cycles * slow * (1.0 + f64::from(dice.below(2000)) / 100_000.0);
        let text = serde_json::json!([
            {"direction": "outbound", "network": "flat", "size": 64, "rules": 10, "engine": "vaes", "cycles_per_packet": noise(200.0)},
            {"direction": "inbound", "network": "flat", "size": "imix", "rules": 10, "engine": "vaes", "cycles_per_packet": noise(300.0)},
        ]);
        rows(&text.to_string()).unwrap()
    }

    #[test]
    fn a_slow_down_of_a_tenth_is_blamed_and_an_unchanged_program_is_not() {
        for (slow, expected) in [(1.1, 2), (1.0, 0), (0.9, 0)] {
            let mut dice = Dice::new(11);
            let pairs: Vec<[Rows; 2]> = (0..16)
                .map(|_| [run_of(&mut dice, 1.0), run_of(&mut dice, slow)])
                .collect();
            let judged = judge(&pairs, 0.03).unwrap();
            assert_eq!(
                judged.iter().filter(|one| one.blamed).count(),
                expected,
                "{judged:?}"
            );
            assert_eq!(judged[0].row, "inbound flat size imix rules 10 vaes");
        }
    }

    #[test]
    fn revisions_without_a_common_row_are_an_error() {
        let pair = [Rows::from([("a".into(), 1.0)]), Rows::from([("b".into(), 1.0)])];
        assert!(judge(&[pair], 0.03).is_err());
    }

    #[test]
    fn what_is_no_revision_is_named() {
        let said = hash_of("no-such-revision").unwrap_err().to_string();
        assert_eq!(said, "no-such-revision is no revision of this repository");
    }
}
