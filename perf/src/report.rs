//! The report of a veth run as one HTML page: figures first, then plots, then every row. It loads nothing from elsewhere.

use std::fmt::{Display, Write};

use plotters::prelude::*;
use serde_json::Value;

use crate::goals::{PathGoal, of_path};
use crate::process::PerfError;
use crate::veth::{Latency, Report, Row};

const SIZE: (u32, u32) = (900, 380);
const FONT: (&str, u32) = ("sans-serif", 15);
/// Told apart also by those who do not see all colours.
const COLOURS: [RGBColor; 10] = [
    RGBColor(0x99, 0x99, 0x99),
    RGBColor(0xb8, 0x86, 0x0b),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0x66, 0x66, 0x66),
    RGBColor(0xe6, 0xb8, 0x00),
    RGBColor(0x80, 0x00, 0x80),
];

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222;background:#fff}\
h1{margin-bottom:0}h2{margin-top:2em}.quiet{color:#666}svg{width:100%;height:auto}\
.cards{display:flex;flex-wrap:wrap;gap:1em;margin:1.5em 0}.card{flex:1 1 200px;border:1px solid #ddd;border-radius:8px;padding:.8em 1em}\
.card b{display:block;font-size:1.7em;line-height:1.2}.good b{color:#00785a}.bad b{color:#b84a00}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{padding:.25em .6em;text-align:right;border-bottom:1px solid #eee}\
th:first-child,td:first-child{text-align:left}";

/// The page.
///
/// # Errors
/// If a plot cannot be drawn.
pub fn page(report: &Report) -> Result<String, PerfError> {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Guestseal: performance</title><style>{STYLE}</style><h1>Guestseal: performance</h1>\
         <p class=\"quiet\">{}, {} CPUs. veth between network namespaces; trials of {} s; one CPU carries the packets, another makes them.</p>",
        escaped(&report.machine),
        report.cpus,
        report.trial_seconds
    );
    page += &cards(report);
    section(
        &mut page,
        "Throughput without loss",
        "The highest rate at which nothing was lost (RFC 2544). One host carries the packets; two-* goes from guest to guest over two hosts.",
        throughput(&report.rows)?,
    );
    section(
        &mut page,
        "How old packets are when they arrive",
        "At half the rate above, open loop: the age counts from when a packet was due, also if it left late. Smallest size that was measured.",
        latency(&report.rows)?,
    );
    if !report.pipeline.is_empty() {
        section(
            &mut page,
            "Where the cycles go",
            "TSC cycles a packet by stage, without a kernel (guestseal-perf pipeline): 10,000 rules, 1,000 flows.",
            stages(&report.pipeline)?,
        );
        page += &path_goals(&of_path(&report.pipeline));
    }
    page += &tables(report);
    page += "</html>\n";
    Ok(page)
}

fn section(page: &mut String, title: &str, words: &str, plot: String) {
    let _ = write!(page, "<h2>{title}</h2><p>{words}</p>{plot}");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn of<'a>(rows: &'a [Row], scenario: &str, size: &str) -> Option<&'a Row> {
    rows.iter()
        .find(|row| row.scenario == scenario && row.size == size)
}

/// The sizes that were measured, in their order.
fn sizes(rows: &[Row]) -> Vec<&str> {
    let mut sizes: Vec<&str> = Vec::new();
    for row in rows {
        if !sizes.contains(&&*row.size) {
            sizes.push(&row.size);
        }
    }
    sizes
}

fn scenarios(rows: &[Row]) -> Vec<&str> {
    let mut scenarios: Vec<&str> = Vec::new();
    for row in rows {
        if !scenarios.contains(&&*row.scenario) {
            scenarios.push(&row.scenario);
        }
    }
    scenarios
}

/// What the goals ask for, with what was found.
fn cards(report: &Report) -> String {
    let mut cards = String::new();
    let mut card = |good: Option<bool>, figure: String, words: &str| {
        let class = match good {
            Some(true) => " good",
            Some(false) => " bad",
            None => "",
        };
        let _ = write!(cards, "<div class=\"card{class}\"><b>{figure}</b>{words}</div>");
    };
    for size in sizes(&report.rows) {
        let rate = |scenario| of(&report.rows, scenario, size).map(|row| row.throughput_pps);
        if let (Some(sealed), Some(plain)) = (rate("encrypt"), rate("plaintext")) {
            let share = sealed / plain;
            let words = format!("of plain forwarding by the same program when sealed, {size} B (goal: 0.9)");
            card(Some(share >= 0.9), format!("{share:.2}"), &words);
        }
        if let (Some(sealed), Some(other)) = (rate("encrypt"), rate("boringtun")) {
            let times = sealed / other;
            let words = format!("times boringtun's packets on one core, {size} B (goal: 2)");
            card(Some(times >= 2.0), format!("{times:.1}"), &words);
        }
        if let (Some(sealed), Some(bare)) = (rate("encrypt"), rate("af-xdp")) {
            let words = format!("of what a bare AF_XDP forwarder carries when sealed, {size} B");
            card(None, format!("{:.2}", sealed / bare), &words);
        }
        // Bridges carry at another rate: what is added is no more than the age itself.
        let sealed = of(&report.rows, "two-hosts", size).and_then(|row| row.latency.as_ref());
        if let Some(Latency { p99_us, .. }) = sealed {
            let words = format!(
                "us old, 99 of 100, when sealed over two hosts at half of the highest rate, {size} B (goal: 50 added)"
            );
            card(Some(*p99_us < 50.0), format!("{p99_us:.0}"), &words);
        }
    }
    let answer = |scenario: &str, busy: bool| {
        let row = report
            .answers
            .iter()
            .find(|row| row.scenario == scenario && row.busy_poll == busy);
        row.map(|row| row.p99_us)
    };
    if let (Some(host), Some(bridges)) = (answer("plaintext-bridge", true), answer("two-bridges", false)) {
        let added = host - bridges;
        let words = "us longer, 99 of 100, for a request and its answer through one host that polls than over bridges (goal: 9)";
        card(Some(added < 9.0), format!("{added:.1}"), words);
        if let Some(bare) = answer("af-xdp-bridge", true) {
            let words = "us of that where a bare AF_XDP forwarder stands for the host";
            card(None, format!("{:.1}", bare - bridges), words);
        }
    }
    if let Some(row) = report.tcp.iter().find(|row| row.scenario == "two-hosts") {
        let words = "of one TCP flow in plaintext by the same programs, when sealed over two hosts";
        card(None, format!("{:.2}", row.share_of_plaintext), words);
    }
    format!("<div class=\"cards\">{cards}</div>")
}

/// The goals of the path, each with how it stands.
fn path_goals(goals: &[PathGoal]) -> String {
    if goals.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "<h2>Goals of the path</h2><p>10,000 rules, hot frames, the fastest engine; beside the bare call of ipsec-mb over the same frames in the same run.</p>\
         <table><tr><th>what<th>cycles<th>beside<th>share<th>goal<th><th>by stage</tr>",
    );
    for goal in goals {
        let _ = write!(
            text,
            "<tr class=\"{}\"><td>{}<td>{:.0}<td>{} ({:.0})<td>{:.2}<td>{}<td><b>{}</b><td>{}</tr>",
            if goal.is_met() { "good" } else { "bad" },
            escaped(&goal.what),
            goal.cycles,
            goal.beside.0,
            goal.beside.1,
            goal.share(),
            goal.allowed,
            goal.verdict(),
            escaped(&goal.where_cycles_go())
        );
    }
    text + "</table>"
}

/// Draws into SVG.
fn drawn(
    size: (u32, u32),
    draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, plotters::coord::Shift>) -> Result<(), String>,
) -> Result<String, PerfError> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        draw(&area)
            .and_then(|()| area.present().map_err(said))
            .map_err(|why| PerfError::Malformed {
                what: "a plot".into(),
                why,
            })?;
    }
    Ok(svg)
}

fn said(error: impl Display) -> String {
    error.to_string()
}

fn throughput(rows: &[Row]) -> Result<String, PerfError> {
    let (sizes, scenarios) = (sizes(rows), scenarios(rows));
    let top = rows
        .iter()
        .map(|row| row.throughput_pps / 1e6)
        .fold(0.1, f64::max)
        * 1.15;
    drawn(SIZE, |area| {
        let width = sizes.len() as f64;
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(34)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..width * 1.25, 0.0..top)
            .map_err(said)?;
        let label = |x: &f64| {
            let at = (*x - 0.5).round();
            let is_middle = (*x - 0.5 - at).abs() < 0.01 && at >= 0.0;
            match sizes.get(at as usize) {
                Some(size) if is_middle => format!("{size} B").replace("imix B", "imix"),
                _ => String::new(),
            }
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(5 * sizes.len() + 1)
            .x_label_formatter(&label)
            .y_desc("million packets a second")
            .label_style(FONT)
            .max_light_lines(0)
            .draw()
            .map_err(said)?;
        let bar = 0.9 / scenarios.len().max(1) as f64;
        for (number, scenario) in scenarios.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let bars = sizes.iter().enumerate().filter_map(|(place, size)| {
                let row = of(rows, scenario, size)?;
                let left = place as f64 + 0.05 + bar * number as f64;
                let corners = [(left, 0.0), (left + bar * 0.9, row.throughput_pps / 1e6)];
                Some(Rectangle::new(corners, colour.filled()))
            });
            chart
                .draw_series(bars)
                .map_err(said)?
                .label(*scenario)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled()));
        }
        legend(&mut chart)
    })
}

fn legend<'a, X, Y>(chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>) -> Result<(), String>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .label_font(FONT)
        .draw()
        .map_err(said)
}

/// One curve a scenario: how old the oldest of 10, of 100, of 1,000 packets was.
fn latency(rows: &[Row]) -> Result<String, PerfError> {
    let Some(size) = sizes(rows).first().copied() else {
        return Ok(String::new());
    };
    let curves: Vec<(&str, &Latency)> = rows
        .iter()
        .filter(|row| row.size == size)
        .filter_map(|row| Some((&*row.scenario, row.latency.as_ref()?)))
        .collect();
    let scenarios = scenarios(rows);
    let longest = curves.iter().map(|(_, one)| one.max_us).fold(10.0, f64::max);
    drawn(SIZE, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d((1.0..20_000.0).log_scale(), (1.0..longest * 1.5).log_scale())
            .map_err(said)?;
        let name = |one_of: &f64| match *one_of as u64 {
            1 => "youngest".to_owned(),
            10 => "90 %".into(),
            100 => "99 %".into(),
            1000 => "99.9 %".into(),
            10_000 => "99.99 %".into(),
            _ => String::new(),
        };
        chart
            .configure_mesh()
            .x_label_formatter(&name)
            .y_desc("us")
            .x_desc("packets that were not older")
            .label_style(FONT)
            .max_light_lines(0)
            .draw()
            .map_err(said)?;
        for (scenario, one) in &curves {
            // As in the plot of rates.
            let number = scenarios.iter().position(|name| name == scenario).unwrap_or(0);
            let colour = COLOURS[number % COLOURS.len()];
            let all = one.packets.max(1) as f64;
            let mut younger = 0.0;
            let points: Vec<(f64, f64)> = one
                .ages
                .iter()
                .map(|(age, count)| {
                    let point = (all / (all - younger), *age as f64 / 1000.0);
                    younger += *count as f64;
                    point
                })
                .collect();
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))
                .map_err(said)?
                .label(format!("{scenario}, {:.0} kpps", one.rate_pps / 1000.0))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        legend(&mut chart)
    })
}

/// One bar a row of the pipeline, its stages one behind the other.
fn stages(rows: &[Value]) -> Result<String, PerfError> {
    let bars: Vec<(String, Vec<(&str, f64)>)> = rows
        .iter()
        .filter_map(|row| {
            let is = |key: &str, number: u64| row.get(key).and_then(Value::as_u64) == Some(number);
            if is("flows", 1) || is("sas", 1000) {
                return None;
            }
            let stages = row.get("stages")?.as_object()?;
            let stages = stages
                .iter()
                .filter_map(|(name, value)| Some((&**name, value.as_f64()?)));
            let word = |key: &str| {
                let value = row.get(key).cloned().unwrap_or_default();
                value.as_str().map_or(value.to_string(), str::to_owned)
            };
            let name = format!("{} {} B {}", word("direction"), word("size"), word("engine"));
            Some((name, stages.collect()))
        })
        .collect();
    let mut names: Vec<&str> = bars
        .iter()
        .flat_map(|(_, stages)| stages.iter().map(|(name, _)| *name))
        .collect();
    // The cipher first: what stands behind it is ours to save.
    names.sort_unstable_by_key(|name| (*name != "cipher", *name));
    names.dedup();
    let sum = |stages: &[(&str, f64)]| stages.iter().map(|(_, cycles)| cycles).sum::<f64>();
    let longest = bars.iter().map(|(_, stages)| sum(stages)).fold(100.0, f64::max);
    drawn((SIZE.0, 60 + 26 * bars.len() as u32), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(34)
            .y_label_area_size(210)
            .build_cartesian_2d(0.0..longest * 1.35, 0.0..bars.len() as f64)
            .map_err(said)?;
        let label = |y: &f64| {
            let at = (bars.len() as f64 - *y - 0.5).round();
            let is_middle = (bars.len() as f64 - *y - 0.5 - at).abs() < 0.01 && at >= 0.0;
            bars.get(at as usize)
                .filter(|_| is_middle)
                .map_or(String::new(), |(name, _)| name.clone())
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(2 * bars.len() + 1)
            .y_label_formatter(&label)
            .label_style(FONT)
            .max_light_lines(0)
            .draw()
            .map_err(said)?;
        for (number, name) in names.iter().enumerate() {
            let colour = COLOURS[(number + 5) % COLOURS.len()];
            let parts = bars.iter().enumerate().filter_map(|(place, (_, stages))| {
                let cycles = |wanted: &str| {
                    stages
                        .iter()
                        .find(|(one, _)| *one == wanted)
                        .map_or(0.0, |(_, c)| *c)
                };
                let before: f64 = names[..number].iter().map(|name| cycles(name)).sum();
                let bottom = (bars.len() - place) as f64 - 0.85;
                let corners = [(before, bottom), (before + cycles(name), bottom + 0.7)];
                (cycles(name) > 0.0).then(|| Rectangle::new(corners, colour.filled()))
            });
            chart
                .draw_series(parts)
                .map_err(said)?
                .label(*name)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled()));
        }
        legend(&mut chart)
    })
}

fn tables(report: &Report) -> String {
    let mut text = String::from(
        "<h2>Every row</h2><table><tr><th>scenario<th>size<th>no loss, pps<th>Gbit/s<th>overload, pps<th>CPU ns<th>p50 us<th>p99 us<th>p99.9 us<th>max us</tr>",
    );
    for row in &report.rows {
        let _ = write!(
            text,
            "<tr><td>{}<td>{}<td>{:.0}<td>{:.2}<td>{:.0}<td>{:.0}",
            escaped(&row.scenario),
            escaped(&row.size),
            row.throughput_pps,
            row.throughput_bps / 1e9,
            row.overload_pps,
            row.cpu_ns_per_packet
        );
        let ages = row
            .latency
            .as_ref()
            .map(|one| [one.p50_us, one.p99_us, one.p999_us, one.max_us]);
        for age in ages.unwrap_or([f64::NAN; 4]) {
            let _ = if age.is_nan() {
                write!(text, "<td>")
            } else {
                write!(text, "<td>{age:.1}")
            };
        }
        text += "</tr>";
    }
    text += "</table><h2>Generator and sink by themselves</h2><p>Nothing between them but a veth: neither is ever the bottleneck above.</p>\
             <table><tr><th>size<th>sent, pps<th>seen, pps<th>each at its time, pps</tr>";
    for row in &report.generator {
        let _ = write!(
            text,
            "<tr><td>{}<td>{:.0}<td>{:.0}<td>{:.0}</tr>",
            escaped(&row.size),
            row.sent_pps,
            row.seen_pps,
            row.paced_pps
        );
    }
    text += "</table>";
    if !report.tcp.is_empty() {
        text += "<h2>One TCP flow, guest to guest</h2><table><tr><th>carried by<th>Gbit/s<th>of bridges<th>of plaintext</tr>";
        for row in &report.tcp {
            let _ = write!(
                text,
                "<tr><td>{}<td>{:.2}<td>{:.2}<td>{:.2}</tr>",
                escaped(&row.scenario),
                row.bits_per_second / 1e9,
                row.share_of_bridges,
                row.share_of_plaintext
            );
        }
        text += "</table><h2>Request and answer, guest to guest</h2><table><tr><th>carried by<th>workers<th>p50 us<th>p99 us</tr>";
        for row in &report.answers {
            let _ = write!(
                text,
                "<tr><td>{}<td>{}<td>{:.1}<td>{:.1}</tr>",
                escaped(&row.scenario),
                if row.busy_poll { "busy polling" } else { "sleeping" },
                row.p50_us,
                row.p99_us
            );
        }
        text += "</table>";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::veth::GeneratorRow;

    fn row(scenario: &str, throughput_pps: f64) -> Row {
        Row {
            scenario: scenario.into(),
            size: "64".into(),
            throughput_pps,
            throughput_bps: throughput_pps * 512.0,
            overload_pps: throughput_pps,
            cpu_ns_per_packet: 1000.0,
            latency: None,
        }
    }

    #[test]
    fn a_page_has_its_plots_and_says_whether_goals_are_met() {
        let mut report = Report {
            machine: "a <machine>".into(),
            cpus: 2,
            trial_seconds: 1.0,
            generator: vec![GeneratorRow {
                size: "64".into(),
                sent_pps: 5e6,
                seen_pps: 5e6,
                paced_pps: 1e6,
            }],
            rows: vec![
                row("plaintext", 500_000.0),
                row("encrypt", 400_000.0),
                row("boringtun", 100_000.0),
            ],
            tcp: Vec::new(),
            answers: Vec::new(),
            pipeline: vec![
                serde_json::json!({"direction": "outbound", "network": "flat", "action": "encrypt", "size": 64, "rules": 10_000, "flows": 1000, "sas": 1,
                                   "frames": 1024, "engine": "ipsec-mb", "cycles_per_packet": 200.0,
                                   "cipher_cycles_per_packet": 100.0, "ipsec_mb_cycles_per_packet": 100.0, "stages": {"parse": 30.0, "cipher": 50.0}}),
            ],
        };
        report.rows[0].latency = Some(Latency {
            rate_pps: 250_000.0,
            packets: 3,
            p50_us: 10.0,
            p90_us: 20.0,
            p99_us: 20.0,
            p999_us: 20.0,
            max_us: 20.0,
            ages: vec![(10_000, 2), (20_000, 1)],
        });
        let page = page(&report).unwrap();
        assert_eq!(page.matches("<svg").count(), 3);
        assert!(page.contains("a &lt;machine>"));
        assert!(
            page.contains("card bad\"><b>0.80") && page.contains("card good\"><b>4.0"),
            "{page}"
        );
        assert!(
            page.contains("<tr class=\"bad\"><td>outbound 64 B, 1000 flows, 1 SA, ipsec-mb<td>200<td>bare ipsec-mb (100)<td>2.00<td>1.1<td><b>missed by 90 cycles"),
            "{page}"
        );
        assert!(!page.contains("NaN") && !page.contains("http://") || page.contains("www.w3.org"));
        // What it was made from reads back as it was.
        let text = serde_json::to_string(&report).unwrap();
        let again: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
    }
}
