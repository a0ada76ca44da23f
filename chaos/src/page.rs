//! The report as a page for people: one file that needs nothing else, in light and in dark.

use crate::fault::Kind;
use crate::report::{Fault, Report};
use crate::verdict::Violation;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Width of the charts, and of the space for their labels on the left.
const WIDTH: f64 = 1120.0;
const LEFT: f64 = 90.0;
/// Height of a chart, and of a lane of faults.
const CHART: f64 = 110.0;
const LANE: f64 = 14.0;
const GAP: f64 = 34.0;
/// Violations of a check that are shown.
const SHOWN_MAX: usize = 10;

/// The checks of a run, by the names that violations have, and what each looks at.
const CHECKS: &[(&str, &str)] = &[
    ("linearizability", "strong reads and writes of each document can be put in one order (search of Wing and Gong)"),
    ("intervals", "no strong read saw what was replaced before it began, or what nobody wrote (each read on its own)"),
    ("session", "a read with a token saw the write that the token names"),
    ("replicas", "all replicas of a shard have the same rows at the same index"),
    ("recovery", "every group has a leader and all its replicas again within a minute, and every shard takes writes"),
    ("search", "every document is found by its words and its vector, and a deleted one is not"),
    ("bit-rot", "what has rotted is noticed, and never served"),
    ("process", "no node ended by itself, but for a disk that fails"),
    ("resources", "memory, descriptors and threads of every node stay within their limits"),
];

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1f2328; --soft: #656d76; --line: #d0d7de; --ground: #ffffff; --good: #1a7f37; --bad: #cf222e;
  --process: #8250df; --network: #0969da; --disk: #bc4c00; --membership: #1a7f37; --one: #0969da; --two: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #8d96a0; --line: #30363d; --ground: #0d1117; --good: #3fb950; --bad: #f85149;
  --process: #a371f7; --network: #58a6ff; --disk: #f0883e; --membership: #3fb950; --one: #58a6ff; --two: #f85149; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 1160px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p.verdict { font-size: 1.1rem; font-weight: 600; margin-top: .2rem; } .good { color: var(--good); } .bad { color: var(--bad); } .soft { color: var(--soft); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: .8rem; } dl div { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .8rem; }
dt { color: var(--soft); font-size: .85rem; } dd { margin: 0; font-size: 1.2rem; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font-size: .85rem; overflow-wrap: anywhere; } .scroll { overflow-x: auto; } svg { min-width: 900px; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; } svg .title { fill: var(--ink); font-size: 12px; font-weight: 600; }
.axis { stroke: var(--line); } .one { stroke: var(--one); fill: none; } .two { stroke: var(--two); fill: none; }
.process { fill: var(--process); } .network { fill: var(--network); } .disk { fill: var(--disk); } .membership { fill: var(--membership); }
";

/// The page.
pub fn page(report: &Report) -> String {
    let mut page = String::new();
    let title = format!("Chaos: seed {}", report.seed);
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>{STYLE}</style><h1>{title}</h1>{}{}<h2>What was broken, and how clients fared</h2>{}<h2>Checks</h2>{}<h2>Classes of faults</h2>{}\
         <h2>Nodes</h2>{}<h2>All faults</h2>{}",
        verdict(report),
        figures(report),
        charts(report),
        checks(report),
        classes(report),
        nodes(report),
        faults(report)
    );
    page
}

fn verdict(report: &Report) -> String {
    let (class, text) = match (&report.violations[..], &report.failure, &report.invalid[..]) {
        ([_, ..], _, _) => ("bad", format!("Promises were broken {} times", report.violations.len())),
        (_, Some(failure), _) => ("bad", format!("The run itself failed: {failure}")),
        (_, _, [_, ..]) => ("bad", format!("Invalid, it has shown nothing: {}", report.invalid.join("; "))),
        ([], None, []) => ("good", "Every promise was kept".to_owned()),
    };
    let again = escaped(&report.command);
    format!(
        "<p class=\"verdict {class}\">{}</p><p class=\"soft\">The same faults again: <code>{again}</code></p>",
        escaped(&text)
    )
}

fn figures(report: &Report) -> String {
    let injections: usize = report.injections.values().sum();
    let overlapping = 100.0 * report.overlapping_seconds / report.seconds;
    let figures = [
        ("nodes", report.nodes.to_string()),
        ("broken for", format!("{:.0} s", report.seconds)),
        ("operations answered", report.operations.done.to_string()),
        ("a second", format!("{:.0}", report.operations.done as f64 / report.seconds)),
        ("refused", report.operations.refused.to_string()),
        ("of unknown outcome", report.operations.unknown.to_string()),
        ("faults injected", injections.to_string()),
        ("classes", report.injections.len().to_string()),
        ("two at once", format!("{overlapping:.0} % of the time")),
        ("longest without a write", format!("{} ms", report.longest_write_gap_ms)),
        ("whole after the end", report.recovery_ms.map_or("never".to_owned(), |ms| format!("{ms} ms"))),
        ("documents read again", report.aftermath.read.to_string()),
    ];
    let cells = figures.map(|(name, value)| format!("<div><dt>{name}</dt><dd>{value}</dd></div>"));
    format!("<dl>{}</dl>", cells.concat())
}

/// A chart: its title, its unit, how high a value stands from 0 to 1, the values that are marked, and its lines.
struct Chart<'a> {
    title: &'a str,
    unit: &'a str,
    height: &'a dyn Fn(f64) -> f64,
    marks: &'a [f64],
    lines: [(&'a str, &'a [f64]); 2],
}

fn charts(report: &Report) -> String {
    let course = &report.course;
    let most = course.answered.iter().chain(&course.failed).copied().fold(1.0, f64::max);
    // A thousandth of the longest latency must still be seen.
    let decades = course.slow_ms.iter().copied().fold(10.0, f64::max).log10().ceil();
    let latency_marks: Vec<f64> = (0..=decades as i32).map(|decade| 10f64.powi(decade)).collect();
    let charts = [
        Chart {
            title: "Operations a second: answered (blue), refused or of unknown outcome (red)",
            unit: "/s",
            height: &|rate| rate / most,
            marks: &[0.0, most / 2.0, most],
            lines: [("one", &course.answered), ("two", &course.failed)],
        },
        Chart {
            title: "Latency of answers, logarithmic: half of them (blue) and 99 of a hundred (red) took at most so long",
            unit: " ms",
            height: &|latency| latency.max(1.0).log10() / decades,
            marks: &latency_marks,
            lines: [("one", &course.median_ms), ("two", &course.slow_ms)],
        },
    ];
    let kinds = [Kind::Process, Kind::Network, Kind::Disk, Kind::Membership];
    let lanes = kinds.len() as f64 * LANE * 1.5;
    let height = GAP + lanes + charts.len() as f64 * (CHART + GAP) + GAP;
    let x = |seconds: f64| LEFT + (WIDTH - LEFT) * (seconds / report.seconds).min(1.0);
    let mut svg = format!(
        "<div class=\"scroll\"><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"faults, operations and latencies over time\">"
    );
    let _ = write!(svg, "<text class=\"title\" x=\"{LEFT}\" y=\"14\">Faults</text>");
    for (lane, kind) in kinds.into_iter().enumerate() {
        let y = GAP * 0.7 + lane as f64 * LANE * 1.5;
        let name = class_of(kind);
        let _ = write!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>", LEFT - 8.0, y + LANE * 0.8);
        for fault in report.faults.iter().filter(|fault| fault.kind == kind) {
            let (from, until) = (x(fault.begun_ms as f64 / 1e3), x(fault.mended_ms as f64 / 1e3));
            let what = escaped(&fault.to_string());
            let wide = (until - from).max(1.5);
            let _ = write!(
                svg,
                "<rect class=\"{name}\" x=\"{from:.1}\" y=\"{y:.1}\" width=\"{wide:.1}\" height=\"{LANE}\" rx=\"1.5\"><title>{what}</title></rect>"
            );
        }
    }
    let mut top = GAP + lanes + GAP;
    for chart in &charts {
        draw(&mut svg, chart, top, course.step_seconds as f64, &x);
        top += CHART + GAP;
    }
    let every = [5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0]
        .into_iter()
        .find(|every| report.seconds / every < 20.0)
        .unwrap_or(7200.0);
    let marks = (0..).map(|mark| f64::from(mark) * every).take_while(|at| *at <= report.seconds);
    for at in marks {
        let _ = write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at} s</text>", x(at), top - GAP + 16.0);
    }
    svg + "</svg></div>"
}

fn draw(svg: &mut String, chart: &Chart<'_>, top: f64, step_seconds: f64, x: &impl Fn(f64) -> f64) {
    let y = |value: f64| top + CHART * (1.0 - (chart.height)(value));
    let _ = write!(svg, "<text class=\"title\" x=\"{LEFT}\" y=\"{:.1}\">{}</text>", top - 8.0, chart.title);
    for mark in chart.marks {
        let at = y(*mark);
        let _ = write!(svg, "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
        let label = format!("{mark:.0}{}", chart.unit);
        let _ = write!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 8.0, at + 4.0);
    }
    for (class, values) in &chart.lines {
        let points = values.iter().enumerate();
        let points = points.map(|(step, value)| format!("{:.1},{:.1}", x((step as f64 + 0.5) * step_seconds), y(*value)));
        let _ = write!(svg, "<polyline class=\"{class}\" points=\"{}\"/>", points.collect::<Vec<_>>().join(" "));
    }
}

fn checks(report: &Report) -> String {
    let mut rows = String::new();
    for (check, about) in CHECKS {
        let found: Vec<&Violation> = report.violations.iter().filter(|one| one.check == *check).collect();
        let (class, verdict) = match found.len() {
            0 => ("good", "kept".to_owned()),
            1 => ("bad", "broken once".to_owned()),
            times => ("bad", format!("broken {times} times")),
        };
        let shown = found.iter().take(SHOWN_MAX).map(|one| format!("<br><code>{}</code>", escaped(&one.what)));
        let found: String = shown.collect();
        let _ = write!(rows, "<tr><td>{check}</td><td class=\"{class}\">{verdict}</td><td>{about}{found}</td></tr>");
    }
    let rest = report.violations.iter().filter(|one| !CHECKS.iter().any(|(check, _)| *check == one.check));
    for one in rest {
        let _ = write!(
            rows,
            "<tr><td>{}</td><td class=\"bad\">not kept</td><td><code>{}</code></td></tr>",
            one.check,
            escaped(&one.what)
        );
    }
    let aftermath = &report.aftermath;
    format!(
        "<table><tr><th>check</th><th>verdict</th><th>what it looks at</th></tr>{rows}</table><p class=\"soft\">After the end {} documents were read through \
         every node: {} were there and found by their words and their vector, {} were deleted and not found.</p>",
        aftermath.read, aftermath.found, aftermath.gone
    )
}

fn classes(report: &Report) -> String {
    let mut by_class: BTreeMap<_, Vec<&Fault>> = BTreeMap::new();
    report.faults.iter().for_each(|fault| by_class.entry(fault.class).or_default().push(fault));
    let mut rows = String::new();
    for (class, faults) in &by_class {
        let lasted: u64 = faults.iter().map(|fault| fault.mended_ms - fault.begun_ms).sum();
        let mut waited: Vec<u64> = faults.iter().map(|fault| fault.writes_waited_ms).collect();
        waited.sort_unstable();
        let whole = faults.iter().filter_map(|fault| fault.whole_ms).max().map_or(String::new(), |ms| format!("{ms} ms"));
        let _ = write!(
            rows,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{} ms</td><td class=\"n\">{} ms</td><td class=\"n\">{} ms</td><td class=\"n\">{whole}</td></tr>",
            class.name(),
            class.meaning(),
            faults.len(),
            lasted / faults.len() as u64,
            waited[waited.len() / 2],
            waited[waited.len() - 1]
        );
    }
    for (class, why) in &report.missing {
        let _ = write!(
            rows,
            "<tr class=\"soft\"><td>{}</td><td>{}. Not here: {why}.</td><td class=\"n\">0</td><td></td><td></td><td></td><td></td></tr>",
            class.name(),
            class.meaning()
        );
    }
    format!(
        "<div class=\"scroll\"><table><tr><th>class</th><th>what happens</th><th class=\"n\">times</th><th class=\"n\">lasted</th><th class=\"n\">writes waited, median</th>\
         <th class=\"n\">longest</th><th class=\"n\">whole again, longest</th></tr>{rows}</table></div><p class=\"soft\">Writes waited: the longest time in which no \
         client's write was acknowledged, from the beginning of a fault until 10 s after it was mended; faults that came meanwhile add to it.</p>"
    )
}

fn nodes(report: &Report) -> String {
    let rows = report.peaks.iter().enumerate().map(|(node, peak)| {
        let (memory, descriptors, threads) = (peak.memory_bytes >> 20, peak.descriptors, peak.threads);
        format!("<tr><td>{node}</td><td class=\"n\">{memory} MiB</td><td class=\"n\">{descriptors}</td><td class=\"n\">{threads}</td></tr>")
    });
    let rows: String = rows.collect();
    format!(
        "<table><tr><th>node</th><th class=\"n\">memory at most</th><th class=\"n\">descriptors</th><th class=\"n\">threads</th></tr>{rows}</table>"
    )
}

fn faults(report: &Report) -> String {
    let rows = report.faults.iter().map(|fault| {
        let (begun, lasted) = (fault.begun_ms as f64 / 1e3, (fault.mended_ms - fault.begun_ms) as f64 / 1e3);
        format!(
            "<tr><td class=\"n\">{begun:.1} s</td><td class=\"n\">{lasted:.1} s</td><td>{}</td><td class=\"n\">{} ms</td></tr>",
            escaped(&fault.to_string()),
            fault.writes_waited_ms
        )
    });
    let rows: String = rows.collect();
    format!(
        "<details><summary>{} faults</summary><table><tr><th class=\"n\">at</th><th class=\"n\">for</th><th>what</th><th class=\"n\">writes waited</th></tr>{rows}</table></details></html>",
        report.faults.len()
    )
}

fn class_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Process => "process",
        Kind::Network => "network",
        Kind::Disk => "disk",
        Kind::Membership => "membership",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
