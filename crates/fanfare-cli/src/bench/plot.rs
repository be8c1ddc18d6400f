//! Draws a report as SVG.

use std::fmt::Write;

use super::report::{Outcome, Report};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
const COLOURS: [&str; 6] = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf"];
/// The ratio that is aimed for.
const AIM: f64 = 0.85;

/// Points that belong together, from left to right.
struct Line {
    name: String,
    colour: &'static str,
    dashed: bool,
    points: Vec<(f64, f64)>,
}

/// Two axes: widths, by their logarithm, and something else.
struct Chart {
    title: String,
    lines: Vec<Line>,
    widths: Vec<f64>,
    ticks: Vec<f64>,
    logarithmic: bool,
}

/// The plots of a report, by the names of their files.
pub(super) fn of(report: &Report) -> [(&'static str, String); 2] {
    [("ratios.svg", ratios(report).draw()), ("rates.svg", rates(report).draw())]
}

fn ratios(report: &Report) -> Chart {
    let highest = report.cases.iter().map(|outcome| outcome.ratio).fold(1.0, f64::max);
    let mut lines = lines(report, "", false, |outcome| outcome.ratio);
    let points = widths(report).into_iter().map(|width| (width, AIM)).collect();
    lines.push(Line { name: "aim".to_owned(), colour: "#888", dashed: true, points });
    Chart {
        title: format!("Fan-outs per second as a share of the limit, {}", report.broker),
        lines,
        widths: widths(report),
        ticks: (0..=(highest * 5.0).ceil() as u32).map(|tick| f64::from(tick) / 5.0).collect(),
        logarithmic: false,
    }
}

fn rates(report: &Report) -> Chart {
    let mut lines = lines(report, "", false, |outcome| outcome.targets_per_s);
    lines.extend(self::lines(report, " limit", true, |outcome| {
        outcome.limit_per_s * outcome.case.width as f64
    }));
    let values = || lines.iter().flat_map(|line| &line.points).map(|(_, value)| value.max(1.0).log10());
    let (least, most) = (values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max));
    Chart {
        title: format!("Targets per second, {}", report.broker),
        ticks: (least.min(most).floor() as i32..=most.ceil() as i32)
            .map(|power| 10_f64.powi(power))
            .collect(),
        lines,
        widths: widths(report),
        logarithmic: true,
    }
}

/// One line for each payload and number of callbacks.
fn lines(report: &Report, suffix: &str, dashed: bool, value: impl Fn(&Outcome) -> f64) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for outcome in &report.cases {
        let case = outcome.case;
        let name = format!("{} B, {} on-target{suffix}", case.payload, case.on_target);
        let point = (case.width as f64, value(outcome));
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => {
                let colour = COLOURS[lines.len() % COLOURS.len()];
                lines.push(Line { name, colour, dashed, points: vec![point] });
            }
        }
    }
    lines.iter_mut().for_each(|line| line.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    lines
}

fn widths(report: &Report) -> Vec<f64> {
    let mut widths: Vec<f64> = report.cases.iter().map(|outcome| outcome.case.width as f64).collect();
    widths.sort_by(f64::total_cmp);
    widths.dedup();
    widths
}

impl Chart {
    fn draw(&self) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        text(&mut svg, LEFT, TOP - 16.0, "start", &self.title);
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in &self.ticks {
            let y = self.y(*tick);
            path(&mut svg, &[(LEFT, y), (right, y)], "#ddd", false);
            text(&mut svg, LEFT - 8.0, y + 4.0, "end", &tick.to_string());
        }
        for width in &self.widths {
            let x = self.x(*width);
            path(&mut svg, &[(x, bottom), (x, bottom + 5.0)], "#888", false);
            text(&mut svg, x, bottom + 20.0, "middle", &width.to_string());
        }
        text(&mut svg, f64::midpoint(LEFT, right), HEIGHT - 10.0, "middle", "targets of a fan-out");
        for (index, line) in self.lines.iter().enumerate() {
            let points: Vec<_> = line.points.iter().map(|(x, y)| (self.x(*x), self.y(*y))).collect();
            path(&mut svg, &points, line.colour, line.dashed);
            let y = TOP + 18.0 * index as f64;
            path(&mut svg, &[(right + 15.0, y), (right + 35.0, y)], line.colour, line.dashed);
            text(&mut svg, right + 40.0, y + 4.0, "start", &line.name);
        }
        svg + "</svg>\n"
    }

    fn x(&self, width: f64) -> f64 {
        let (first, last) = (self.widths.first().copied(), self.widths.last().copied());
        LEFT + share(width.log10(), first.unwrap_or(1.0).log10(), last.unwrap_or(1.0).log10())
            * (WIDTH - RIGHT - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.logarithmic { value.max(1.0).log10() } else { value };
        let (first, last) = (self.ticks.first().copied(), self.ticks.last().copied());
        let share = share(scale(value), scale(first.unwrap_or(0.0)), scale(last.unwrap_or(1.0)));
        HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)
    }
}

/// Where a value lies between two others; in the middle, where these are the same.
fn share(value: f64, first: f64, last: f64) -> f64 {
    if last > first { (value - first) / (last - first) } else { 0.5 }
}

fn path(svg: &mut String, points: &[(f64, f64)], colour: &str, dashed: bool) {
    let points: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let dashes = if dashed { " stroke-dasharray=\"5 4\"" } else { "" };
    let points = points.join(" ");
    let _ = writeln!(
        svg,
        "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/>"
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}
