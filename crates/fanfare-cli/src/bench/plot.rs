//! Draws a report as SVG.

use std::fmt::Write;

use super::Other;
use super::case::Case;
use super::report::{Outcome, Report};

const WIDTH: f64 = 930.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 360.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
const COLOURS: [&str; 8] =
    ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2"];
const WIDTHS: &str = "targets of a fan-out";
/// The ratio that is aimed for.
const AIM: f64 = 0.85;

/// Points that belong together, from left to right.
struct Line {
    name: String,
    colour: &'static str,
    dashed: bool,
    points: Vec<(f64, f64)>,
}

/// Two axes: widths or workers, by their logarithm, and something else.
struct Chart {
    title: String,
    lines: Vec<Line>,
    /// What the lower axis tells of.
    of: &'static str,
    places: Vec<f64>,
    ticks: Vec<f64>,
    logarithmic: bool,
}

/// What the lower axis tells of, and where a case is on it.
#[derive(Clone, Copy)]
enum Axis {
    Widths,
    Workers,
}

impl Axis {
    fn place(self, case: &Case) -> f64 {
        match self {
            Self::Widths => case.width as f64,
            Self::Workers => case.workers as f64,
        }
    }

    /// Where there are cases, from left to right.
    fn places(self, report: &Report) -> Vec<f64> {
        let mut places: Vec<f64> = report.cases.iter().map(|outcome| self.place(&outcome.case)).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        places
    }
}

/// The plots of a report, by the names of their files.
pub(super) fn of(report: &Report, others: &[Other]) -> Vec<(&'static str, String)> {
    let mut plots = vec![
        ("ratios.svg", ratios(report).draw()),
        ("rates.svg", rates(report).draw()),
        ("latency.svg", latency(report).draw()),
    ];
    if report.cases.iter().any(|outcome| outcome.case.workers != report.cases[0].case.workers) {
        plots = vec![("workers.svg", workers(report).draw())];
    }
    if !others.is_empty() {
        plots.push(("peers.svg", peers(report, others).draw()));
    }
    plots
}

fn ratios(report: &Report) -> Chart {
    let highest = report.cases.iter().map(|outcome| outcome.ratio_of_used_queues).fold(1.0, f64::max);
    let of_empty = |outcome: &Outcome| outcome.raw.queues.map(|_| outcome.ratio);
    let mut lines = lines(report, Axis::Widths, "; empty queues' limit", true, of_empty);
    let used = |outcome: &Outcome| Some(outcome.ratio_of_used_queues);
    lines.extend(self::lines(report, Axis::Widths, "", false, used));
    let places = Axis::Widths.places(report);
    let points = places.iter().map(|place| (*place, AIM)).collect();
    lines.push(Line { name: "aim".to_owned(), colour: "#888", dashed: true, points });
    Chart {
        title: format!("Fan-outs per second as a share of the limit, {}", report.broker),
        lines,
        of: WIDTHS,
        places,
        ticks: (0..=(highest * 5.0).ceil() as u32).map(|tick| f64::from(tick) / 5.0).collect(),
        logarithmic: false,
    }
}

fn rates(report: &Report) -> Chart {
    let mut lines = lines(report, Axis::Widths, "", false, |outcome| Some(outcome.targets_per_s));
    lines.extend(self::lines(report, Axis::Widths, "; limit", true, |outcome| {
        Some(outcome.limit_of_used_queues_per_s * outcome.case.width as f64)
    }));
    logarithmic(format!("Targets per second, {}", report.broker), report, Axis::Widths, lines)
}

fn latency(report: &Report) -> Chart {
    let fan_in = |outcome: &Outcome| Some(outcome.alone.fan_in.p50_ms);
    let mut lines = lines(report, Axis::Widths, "; fan-in", false, fan_in);
    lines.extend(self::lines(report, Axis::Widths, "; two raw hops", true, |outcome| {
        Some(outcome.alone.two_hops.p50_ms)
    }));
    let title = format!("Milliseconds of one fan-out alone, medians, {}", report.broker);
    logarithmic(title, report, Axis::Widths, lines)
}

/// Fanfare's smallest payload without on-target callbacks, beside what others did.
fn peers(report: &Report, others: &[Other]) -> Chart {
    let payload = report.cases.iter().map(|outcome| outcome.case.payload).min();
    let is_alike = |case: &Case| Some(case.payload) == payload && case.on_target == 0;
    let mut lines = lines(report, Axis::Widths, "", false, |outcome| {
        is_alike(&outcome.case).then_some(outcome.fan_outs_per_s)
    });
    let places = Axis::Widths.places(report);
    for other in others.iter().filter(|other| places.contains(&(other.width as f64))) {
        let point = (other.width as f64, other.fan_outs_per_s);
        match lines.iter_mut().find(|line| line.name == other.name) {
            Some(line) => line.points.push(point),
            None => {
                let colour = COLOURS[lines.len() % COLOURS.len()];
                lines.push(Line { name: other.name.clone(), colour, dashed: true, points: vec![point] });
            }
        }
    }
    let title = format!("Fan-outs per second, {} bytes, {}", payload.unwrap_or_default(), report.broker);
    logarithmic(title, report, Axis::Widths, lines)
}

fn workers(report: &Report) -> Chart {
    let lines = lines(report, Axis::Workers, "", false, |outcome| Some(outcome.targets_per_s));
    let title = format!("Targets per second by worker processes, {}", report.broker);
    logarithmic(title, report, Axis::Workers, lines)
}

fn logarithmic(title: String, report: &Report, axis: Axis, lines: Vec<Line>) -> Chart {
    let values = || lines.iter().flat_map(|line| &line.points).map(|(_, value)| value.max(1.0).log10());
    let (least, most) = (values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max));
    Chart {
        title,
        ticks: (least.min(most).floor() as i32..=most.ceil() as i32)
            .map(|power| 10_f64.powi(power))
            .collect(),
        lines,
        of: match axis {
            Axis::Widths => WIDTHS,
            Axis::Workers => "worker processes",
        },
        places: axis.places(report),
        logarithmic: true,
    }
}

/// One line for each shape of cases but for what the axis tells of, in that shape's colour.
fn lines(
    report: &Report,
    axis: Axis,
    suffix: &str,
    dashed: bool,
    value: impl Fn(&Outcome) -> Option<f64>,
) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for outcome in &report.cases {
        let Case { aggregation, width, payload, on_target, .. } = outcome.case;
        let shape = match axis {
            Axis::Widths => format!("{aggregation}, {payload} B, {on_target} on-target"),
            Axis::Workers => format!("{aggregation}, width {width}, {payload} B"),
        };
        let name = format!("{shape}{suffix}");
        let point = value(outcome).map(|value| (axis.place(&outcome.case), value));
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.extend(point),
            None => {
                let colour = COLOURS[lines.len() % COLOURS.len()];
                lines.push(Line { name, colour, dashed, points: point.into_iter().collect() });
            }
        }
    }
    lines.retain(|line| !line.points.is_empty());
    lines.iter_mut().for_each(|line| line.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    lines
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
        for place in &self.places {
            let x = self.x(*place);
            path(&mut svg, &[(x, bottom), (x, bottom + 5.0)], "#888", false);
            text(&mut svg, x, bottom + 20.0, "middle", &place.to_string());
        }
        text(&mut svg, f64::midpoint(LEFT, right), HEIGHT - 10.0, "middle", self.of);
        for (index, line) in self.lines.iter().enumerate() {
            let points: Vec<_> = line.points.iter().map(|(x, y)| (self.x(*x), self.y(*y))).collect();
            path(&mut svg, &points, line.colour, line.dashed);
            let y = TOP + 18.0 * index as f64;
            path(&mut svg, &[(right + 15.0, y), (right + 35.0, y)], line.colour, line.dashed);
            text(&mut svg, right + 40.0, y + 4.0, "start", &line.name);
        }
        svg + "</svg>\n"
    }

    fn x(&self, place: f64) -> f64 {
        let (first, last) = (self.places.first().copied(), self.places.last().copied());
        LEFT + share(place.log10(), first.unwrap_or(1.0).log10(), last.unwrap_or(1.0).log10())
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
