//! The benchmark over veths: packets that are counted at the end are those that were sent, whatever carries them. No figure
//! is judged here.

use std::process::Command;

use serde_json::Value;

use crate::net::{Result, ensure};

pub(crate) fn veth() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (json, html) = (
        directory.path().join("veth.json"),
        directory.path().join("veth.html"),
    );
    let done = Command::new(env!("CARGO_BIN_EXE_guestseal-perf"))
        .args(["veth", "--seconds", "0.02", "--size", "imix"])
        .args([
            "--scenario",
            "vxlan,plaintext,authenticate,opening,two-hosts,boringtun",
            "--json",
        ])
        .arg(&json)
        .arg("--html")
        .arg(&html)
        .output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure(done.status.success(), || said.to_string())?;
    let report: Value = serde_json::from_slice(&std::fs::read(&json)?)?;
    let rows = report["rows"].as_array().cloned().unwrap_or_default();
    ensure(rows.len() == 6, || report.to_string())?;
    for row in &rows {
        // Something got through: sealed, opened, tunnelled, forwarded.
        ensure(row["overload_pps"].as_f64() > Some(0.0), || row.to_string())?;
    }
    // Stamps are found in plaintext, in what is only authenticated, and in what was opened.
    let with_ages: Vec<&str> = rows
        .iter()
        .filter(|row| row["latency"]["packets"].as_u64() > Some(0))
        .filter_map(|row| row["scenario"].as_str())
        .collect();
    // A busy machine may find no rate without loss, and then measures no latency; it says so by 0.
    for row in rows
        .iter()
        .filter(|row| row["throughput_pps"].as_f64() > Some(0.0))
    {
        let name = row["scenario"].as_str().unwrap_or_default();
        let readable = ["plaintext", "authenticate", "two-hosts"].contains(&name);
        ensure(readable == with_ages.contains(&name), || format!("{name}: {row}"))?;
    }
    ensure(std::fs::read_to_string(&html)?.contains("<svg"), || {
        "the page has no plot".into()
    })
}
