//! The results as Markdown and as a picture.

use std::fmt::Write;

use crate::report::{Report, Sample, Verdict};

/// All of a run, as Markdown.
pub fn markdown(report: &Report, machine: &str) -> String {
    let mut text = String::from(
        "# Results\n\nWritten by `mount-scripts/bench`; how they are measured is in [README.md](README.md).\n\n",
    );
    let mut say = |line: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    };
    say(format_args!("{machine}"));
    say(format_args!("\n![ratios](results.svg)\n"));
    say(format_args!(
        "## Bars\n\n| what | bar | measured | |\n|---|---|---|---|"
    ));
    for bar in &report.bars {
        let verdict = match bar.verdict {
            Verdict::NotHeld => "**not held**".to_owned(),
            verdict => verdict.to_string(),
        };
        say(format_args!(
            "| {} | {} | {} | {verdict} |",
            bar.what, bar.limit, bar.measured
        ));
    }
    for section in &report.sections {
        if section.comparisons.is_empty() && section.lines.is_empty() {
            continue;
        }
        say(format_args!("\n## {}\n", section.title));
        if !section.comparisons.is_empty() {
            say(format_args!(
                "| what | here | rival | there | here / there |\n|---|---|---|---|---|"
            ));
        }
        for one in &section.comparisons {
            let ratio = one.ratio.spread();
            say(format_args!(
                "| {} | {} | {} | {} | **{ratio}** |",
                one.ours, one.here, one.rival, one.there
            ));
        }
        if !section.lines.is_empty() {
            say(format_args!(""));
        }
        for (what, value) in &section.lines {
            say(format_args!("- {what}: {value}"));
        }
    }
    text
}

const WIDTH: f64 = 860.0;
/// Where the bars are, from left to right; the text is on both sides.
const LEFT: f64 = 400.0;
const RIGHT: f64 = 740.0;
const ROW: f64 = 22.0;
const TOP: f64 = 58.0;

/// What a bar is for: twice as fast is as far from 1 as half as fast.
fn x(ratio: f64, farthest: f64) -> f64 {
    let share = (ratio.ln() / farthest.ln()).clamp(-1.0, 1.0);
    (LEFT + RIGHT) / 2.0 + share * (RIGHT - LEFT) / 2.0
}

/// The ratios as bars, in SVG that can be read on light and on dark ground.
pub fn picture(report: &Report) -> String {
    let shown = &report.pictured;
    let farthest = shown.iter().flat_map(|(_, ratio)| {
        let (low, high) = ratio.range();
        [1.0 / low, high]
    });
    let farthest = farthest.fold(4.0, f64::max);
    let height = TOP + ROW * shown.len() as f64 + 14.0;
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="system-ui, sans-serif" font-size="12.5">
<style>
text {{ fill: #24292f }} .faint {{ fill: #6e7781 }} .grid {{ stroke: #6e7781; stroke-opacity: .35 }} .one {{ stroke: #6e7781 }}
.faster {{ fill: #2da44e }} .slower {{ fill: #d4792a }} .spread {{ stroke: #24292f }}
@media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3 }} .faint {{ fill: #9198a1 }} .spread {{ stroke: #e6edf3 }} .faster {{ fill: #2ea043 }} .slower {{ fill: #d0741f }} }}
</style>
<text x="12" y="20" font-weight="bold" font-size="14">Time, vminfod / rival: below 1, vminfod is faster</text>
<text x="12" y="38" class="faint">median, thin line: smallest to largest round; same run, taking turns</text>
"##
    );
    let mut say = |line: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(svg, "{line}");
    };
    let bottom = height - 8.0;
    for grid in [0.01, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0, 100.0] {
        if grid > farthest || grid < 1.0 / farthest {
            continue;
        }
        let (at, class) = (x(grid, farthest), if grid == 1.0 { "one" } else { "grid" });
        say(format_args!(
            r#"<line x1="{at:.1}" x2="{at:.1}" y1="{:.1}" y2="{bottom:.1}" class="{class}"/><text x="{at:.1}" y="{:.1}" class="faint" text-anchor="middle" font-size="10">{grid}</text>"#,
            TOP - 4.0,
            TOP - 7.0
        ));
    }
    for (row, (what, ratio)) in shown.iter().enumerate() {
        let middle = TOP + ROW * (row as f64 + 0.5);
        say(format_args!("{}", bar(what, ratio, middle, farthest)));
    }
    svg.push_str("</svg>\n");
    svg
}

fn bar(what: &str, ratio: &Sample, middle: f64, farthest: f64) -> String {
    let (one, median) = (x(1.0, farthest), x(ratio.median(), farthest));
    let (low, high) = ratio.range();
    let (low, high) = (x(low, farthest), x(high, farthest));
    let class = if ratio.median() <= 1.0 {
        "faster"
    } else {
        "slower"
    };
    let (from, width) = (one.min(median), (one - median).abs().max(1.0));
    let what = what.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{what}</text><rect x="{from:.1}" y="{:.1}" width="{width:.1}" height="{:.1}" class="{class}"/><line x1="{low:.1}" x2="{high:.1}" y1="{middle:.1}" y2="{middle:.1}" class="spread"/><text x="{:.1}" y="{:.1}">{:.2} ×</text>"#,
        LEFT - 10.0,
        middle + 4.0,
        middle - 7.0,
        14.0,
        RIGHT + 10.0,
        middle + 4.0,
        ratio.median()
    )
}
