//! Plots as SVG: pure functions from numbers to markup. Colours and type come from the page's style sheet by class, so
//! that one plot suits light, dark and print.

use std::fmt::Write;

/// Size of the drawing in its own units, and the place of the axes within. The margins fit labels half as large again,
/// which narrow screens get.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 624.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 276.0;
/// About so many numbers on the y axis.
const NUM_Y_TICKS: usize = 5;

/// An axis: what it shows, from where to where, and how its numbers are written.
pub(crate) struct Axis<'a> {
    pub(crate) title: &'a str,
    pub(crate) range: (f64, f64),
    /// About so many numbers are written.
    pub(crate) num_ticks: usize,
    pub(crate) format: fn(f64) -> String,
}

/// A bar over a part of the x axis.
pub(crate) struct Column {
    pub(crate) from: f64,
    pub(crate) to: f64,
    pub(crate) value: f64,
    /// Shown where the pointer rests.
    pub(crate) hint: String,
}

/// A value on the x axis that is pointed out.
pub(crate) struct Mark {
    pub(crate) at: f64,
    pub(crate) label: String,
}

/// Bars, over an optional band of the x axis, under an optional mark. `label` says the whole to those who cannot see it.
pub(crate) fn columns(
    label: &str,
    x: &Axis<'_>,
    y_title: &str,
    columns: &[Column],
    highlight: Option<(Mark, (f64, f64))>,
) -> String {
    let max = columns.iter().map(|column| column.value).fold(0.0, f64::max);
    let step = step((0.0, max.max(1.0)), NUM_Y_TICKS);
    let range = (0.0, (max.max(1.0) / step - 1e-9).ceil() * step);
    let y = Axis { title: y_title, range, num_ticks: NUM_Y_TICKS, format: super::figures::short };
    let frame = Frame { x, y: &y };
    let mut svg = Svg::open(label);
    if let Some((_, (from, to))) = &highlight {
        let (left, right) = (frame.x(*from), frame.x(*to));
        svg.push(format_args!(
            r#"<rect class="band" x="{left:.1}" y="{TOP}" width="{:.1}" height="{:.1}"/>"#,
            (right - left).max(1.0),
            BOTTOM - TOP
        ));
    }
    svg.axes(&frame);
    for column in columns.iter().filter(|column| column.value > 0.0) {
        let (left, right, top) = (frame.x(column.from), frame.x(column.to), frame.y(column.value));
        let gap = ((right - left) * 0.12).min(3.0);
        svg.push(format_args!(
            r#"<rect class="bar" x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}"><title>{}</title></rect>"#,
            left + gap,
            // Something that is there is seen.
            top.min(BOTTOM - 1.0),
            (right - left - 2.0 * gap).max(0.5),
            (BOTTOM - top).max(1.0),
            escape(&column.hint)
        ));
    }
    if let Some((mark, _)) = &highlight {
        let at = frame.x(mark.at);
        // On the side that has room.
        let (anchor, shift) = if at > (LEFT + RIGHT) / 2.0 { ("end", -7.0) } else { ("start", 7.0) };
        // Twice: the first one is the light edge that parts the mark from a bar.
        for class in ["edge", "mark"] {
            svg.push(format_args!(
                r#"<line class="{class}" x1="{at:.1}" y1="{}" x2="{at:.1}" y2="{BOTTOM}"/>"#,
                TOP - 14.0
            ));
        }
        svg.text(&mark.label, "strong", anchor, at + shift, TOP - 4.0);
    }
    svg.close()
}

/// A line from the first point to the last, with dots on it that have hints.
pub(crate) fn line(
    label: &str,
    x: &Axis<'_>,
    y: &Axis<'_>,
    points: &[(f64, f64)],
    dots: &[((f64, f64), String)],
) -> String {
    let frame = Frame { x, y };
    let mut svg = Svg::open(label);
    svg.axes(&frame);
    let mut path = String::new();
    for (x, y) in points {
        let command = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{command}{:.1} {:.1}", frame.x(*x), frame.y(*y));
    }
    if let (Some(first), Some(last)) = (points.first(), points.last()) {
        let (left, right) = (frame.x(first.0), frame.x(last.0));
        svg.push(format_args!(r#"<path class="area" d="{path}L{right:.1} {BOTTOM}L{left:.1} {BOTTOM}Z"/>"#));
    }
    svg.push(format_args!(r#"<path class="line" d="{path}"/>"#));
    for ((x, y), hint) in dots {
        svg.push(format_args!(
            r#"<circle class="dot" cx="{:.1}" cy="{:.1}" r="4.5"><title>{}</title></circle>"#,
            frame.x(*x),
            frame.y(*y),
            escape(hint)
        ));
    }
    svg.close()
}

/// A named line among others.
pub(crate) struct Series<'a> {
    pub(crate) name: &'a str,
    pub(crate) points: Vec<(f64, f64)>,
}

/// One line a series, told apart by the style sheet's classes `series-0` and so on. The page says which is which: text
/// beside the plot has more room on a narrow screen.
pub(crate) fn lines(label: &str, x: &Axis<'_>, y: &Axis<'_>, series: &[Series<'_>]) -> String {
    let frame = Frame { x, y };
    let mut svg = Svg::open(label);
    svg.axes(&frame);
    for (idx, series) in series.iter().enumerate() {
        let mut path = String::new();
        for (x, y) in &series.points {
            let command = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", frame.x(*x), frame.y(*y));
        }
        svg.push(format_args!(
            r#"<path class="line series-{idx}" d="{path}"><title>{}</title></path>"#,
            escape(series.name)
        ));
    }
    svg.close()
}

/// Where numbers lie.
struct Frame<'a> {
    x: &'a Axis<'a>,
    y: &'a Axis<'a>,
}

impl Frame<'_> {
    fn x(&self, value: f64) -> f64 {
        LEFT + share(value, self.x.range) * (RIGHT - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        BOTTOM - share(value, self.y.range) * (BOTTOM - TOP)
    }
}

/// Where in a range a value lies, from 0 to 1. A range without extent has all in its middle.
fn share(value: f64, (from, to): (f64, f64)) -> f64 {
    if to > from { ((value - from) / (to - from)).clamp(0.0, 1.0) } else { 0.5 }
}

struct Svg(String);

impl Svg {
    fn open(label: &str) -> Self {
        Self(format!(r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{}">"#, escape(label)))
    }

    fn close(mut self) -> String {
        self.0.push_str("</svg>");
        self.0
    }

    fn push(&mut self, markup: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.0.write_fmt(markup);
    }

    fn text(&mut self, text: &str, class: &str, anchor: &str, x: f64, y: f64) {
        self.push(format_args!(
            r#"<text class="{class}" text-anchor="{anchor}" x="{x:.1}" y="{y:.1}">{}</text>"#,
            escape(text)
        ));
    }

    /// Grid lines, numbers and titles. The y title lies above its axis, where it is read without turning the head.
    fn axes(&mut self, frame: &Frame<'_>) {
        for value in ticks(frame.y) {
            let y = frame.y(value);
            let class = if value == 0.0 { "base" } else { "grid" };
            self.push(format_args!(
                r#"<line class="{class}" x1="{LEFT}" y1="{y:.1}" x2="{RIGHT}" y2="{y:.1}"/>"#
            ));
            self.text(&(frame.y.format)(value), "tick", "end", LEFT - 8.0, y + 5.0);
        }
        for value in ticks(frame.x) {
            let x = frame.x(value);
            self.push(format_args!(
                r#"<line class="base" x1="{x:.1}" y1="{BOTTOM}" x2="{x:.1}" y2="{:.1}"/>"#,
                BOTTOM + 5.0
            ));
            self.text(&(frame.x.format)(value), "tick", "middle", x, BOTTOM + 24.0);
        }
        self.text(frame.y.title, "title", "start", 2.0, 16.0);
        self.text(frame.x.title, "title", "end", RIGHT, HEIGHT - 12.0);
    }
}

/// The round numbers of an axis.
fn ticks(axis: &Axis<'_>) -> Vec<f64> {
    let (from, to) = axis.range;
    let step = step(axis.range, axis.num_ticks);
    let first = (from / step - 1e-9).ceil() as i64;
    let last = (to / step + 1e-9).floor() as i64;
    (first..=last).map(|idx| idx as f64 * step).collect()
}

/// From one round number to the next. Axes here count things, or show shares of 1: no step is under 1, or under 0.01.
fn step((from, to): (f64, f64), num_ticks: usize) -> f64 {
    let least = if to > 1.0 { 1.0 } else { 0.01 };
    let rough = ((to - from) / num_ticks.max(1) as f64).max(least);
    let power = 10f64.powf((rough * 1.0001).log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough * 0.999);
    factor.unwrap_or(10.0) * power
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            _ => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f64_text(value: f64) -> String {
        value.to_string()
    }

    #[test]
    fn ticks_are_round_and_within() {
        let ticks = |from, to| ticks(&Axis { title: "", range: (from, to), num_ticks: 5, format: f64_text });
        assert_eq!(ticks(0.0, 1.0).len(), 6);
        assert_eq!(
            ticks(-0.2, 0.6).iter().map(|share| format!("{share:.1}")).collect::<Vec<_>>().join(" "),
            "-0.2 0.0 0.2 0.4 0.6"
        );
        assert_eq!(ticks(1.5, 6.5), [2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(ticks(0.0, 43_210.0), [0.0, 10_000.0, 20_000.0, 30_000.0, 40_000.0]);
        assert_eq!(ticks(3.0, 3.0), [3.0]);
    }

    #[test]
    fn bars_stand_on_the_axis_and_text_is_escaped() {
        let axis = Axis { title: "a < b", range: (0.0, 2.0), num_ticks: 5, format: f64_text };
        let bars = [Column { from: 0.0, to: 1.0, value: 4.0, hint: "</title><script>".into() }];
        let svg = columns("\"label\"", &axis, "things", &bars, None);
        assert!(
            svg.contains(r#"y="40.0" width="540"#)
                || svg.contains(r#"y="40.0" width="267.0" height="236.0""#),
            "{svg}"
        );
        assert!(svg.contains("&lt;/title&gt;&lt;script&gt;") && svg.contains("a &lt; b"));
        assert!(svg.starts_with("<svg") && svg.contains("aria-label=\"&quot;label&quot;\""));
        assert!(!svg.contains("<script") && !svg.contains("NaN"));
    }

    #[test]
    fn nothing_to_draw_is_no_fault() {
        let axis = Axis { title: "", range: (0.0, 0.0), num_ticks: 5, format: f64_text };
        assert!(!columns("", &axis, "", &[], None).contains("NaN"));
        assert!(!line("", &axis, &axis, &[], &[]).contains("NaN"));
        let none = Series { name: "", points: Vec::new() };
        assert!(!lines("", &axis, &axis, &[none]).contains("NaN"));
    }

    #[test]
    fn lines_have_their_names() {
        let axis = Axis { title: "", range: (0.0, 1.0), num_ticks: 5, format: f64_text };
        let points = vec![(0.0, 0.0), (1.0, 1.0)];
        let svg = lines(
            "",
            &axis,
            &axis,
            &[Series { name: "a & b", points: points.clone() }, Series { name: "c", points }],
        );
        assert!(svg.contains(r#"<path class="line series-0" d="M78.0 276.0L624.0 40.0">"#), "{svg}");
        assert!(svg.contains("<title>a &amp; b</title>") && svg.contains("series-1"));
    }
}
