//! The page: what the template is given. Texts come from a vocabulary and a corpus that nobody vouches for, so that the
//! template escapes everything but the plots, which hold no such text.

use fused_vocabulary::report::{Example, NTokenFigures, Report};
use minijinja::value::Serde;
use minijinja::{Value, context};
use serde::Serialize;

use super::visible::{self, Layout};
use crate::page::figures::{change, number, percent, short, signed};
use crate::page::plot::{self, Axis, Column, Mark};
use crate::page::{self, safe};

const TEMPLATE: &str = include_str!("report.html");
/// Rows of the tables of n-tokens and of removed tokens.
const NUM_N_TOKENS_SHOWN: usize = 50;
const NUM_REMOVED_SHOWN: usize = 10;
/// Points of the line of coverage: one for each n-token would be a large page.
const MAX_POINTS: usize = 240;
/// Shares of all savings that the table of coverage names, and those that are dots on its line.
const COVERAGE: [f64; 6] = [0.5, 0.75, 0.9, 0.95, 0.99, 1.0];
const COVERAGE_DOTS: usize = 4;
/// Lengths that are written under the bars.
const NUM_LENGTH_TICKS: usize = 12;
/// Widths of the histogram's bars in points of percent; the first that makes few enough is taken.
const BIN_POINTS: [i64; 5] = [1, 2, 5, 10, 20];
const MAX_BINS: i64 = 36;
/// Savings are counted in tenths of a point.
const STEPS_PER_POINT: i64 = 10;

pub(super) struct Page<'a> {
    pub(super) model: &'a str,
    /// Names of the text's files.
    pub(super) texts: &'a [String],
    pub(super) made_at: &'a str,
    pub(super) report: &'a Report,
}

impl Page<'_> {
    pub(super) fn to_html(&self) -> Result<String, minijinja::Error> {
        let mut environment = page::environment()?;
        environment.add_filter("whole_percent", whole_percent);
        environment.add_filter("change", change);
        environment.add_filter("two_decimals", |value: f64| signed(value, 2));
        environment.add_filter("parts", |text: &str| from(visible::parts(text, Layout::Cell)));
        environment.add_filter("running_parts", |text: &str| from(visible::parts(text, Layout::Running)));
        environment.add_filter("border_list", border_list);
        environment.template_from_named_str("report.html", TEMPLATE)?.render(self.context())
    }

    fn context(&self) -> Value {
        let report = self.report;
        let (bytes_before, bytes_after) = report.bytes_per_token();
        context! {
            model => self.model,
            texts => self.texts.to_vec(),
            made_at => self.made_at,
            version => env!("CARGO_PKG_VERSION"),
            vocabulary => from(&report.vocabulary),
            num_documents => report.num_documents,
            num_bytes => report.num_bytes,
            num_base_tokens => report.num_base_tokens,
            num_tokens => report.num_tokens,
            saved_share => report.saved_share,
            num_saved_tokens => report.num_saved_tokens,
            bytes_before, bytes_after,
            num_used => report.n_tokens.len(),
            lengths => lengths(report),
            n_tokens => n_tokens(report),
            coverage => coverage(report),
            removed => removed(report),
            savings => savings(report),
            example => report.example.as_ref().map(example),
        }
    }
}

fn lengths(report: &Report) -> Value {
    let columns: Vec<Column> = report
        .lengths
        .iter()
        .map(|length| Column {
            from: length.num_base_tokens as f64 - 0.5,
            to: length.num_base_tokens as f64 + 0.5,
            value: length.num_saved_tokens as f64,
            hint: format!(
                "{} base tokens: {} tokens saved",
                length.num_base_tokens,
                number(length.num_saved_tokens)
            ),
        })
        .collect();
    let range = (1.5, report.lengths.len() as f64 + 1.5);
    let x = Axis {
        title: "base tokens in one n-token",
        range,
        num_ticks: NUM_LENGTH_TICKS,
        format: |value| format!("{value:.0}"),
    };
    let label = "Tokens saved by the length of n-tokens; the table beside it has the same figures";
    let rows: Vec<Value> = report
        .lengths
        .iter()
        .map(|length| context! { share => share_of(length.num_saved_tokens, report), ..from(length) })
        .collect();
    context! { plot => safe(plot::columns(label, &x, "tokens saved", &columns, None)), rows }
}

fn n_tokens(report: &Report) -> Vec<Value> {
    let most = report.n_tokens.first().map_or(1, |n_token| n_token.num_saved_tokens.max(1));
    let row = |n_token: &NTokenFigures| {
        let bar_percent = n_token.num_saved_tokens as f64 / most as f64 * 100.0;
        context! {
            share => share_of(n_token.num_saved_tokens, report),
            bar_percent => format!("{bar_percent:.1}"),
            ..from(n_token)
        }
    };
    report.n_tokens.iter().take(NUM_N_TOKENS_SHOWN).map(row).collect()
}

fn coverage(report: &Report) -> Value {
    let num_n_tokens = report.vocabulary.num_n_tokens;
    let mut saved = 0;
    let mut points = vec![(0.0, 0.0)];
    let stride = report.n_tokens.len().div_ceil(MAX_POINTS).max(1);
    for (idx, n_token) in report.n_tokens.iter().enumerate() {
        saved += n_token.num_saved_tokens;
        // The first ones, where the line is steep, all; then every so many, and the last.
        if idx < MAX_POINTS / 4 || (idx + 1) % stride == 0 || idx + 1 == report.n_tokens.len() {
            points.push(((idx + 1) as f64, share_of(saved, report)));
        }
    }
    // What this text does not use adds nothing, which is worth seeing.
    points.push((num_n_tokens as f64, share_of(saved, report)));
    let covering = COVERAGE.map(|share| (share, report.num_n_tokens_for(share)));
    let dots: Vec<_> = covering[..COVERAGE_DOTS]
        .iter()
        .map(|(share, num)| {
            let hint = format!("{} n-tokens: {} of the savings", number(*num as u64), percent(*share));
            ((*num as f64, *share), hint)
        })
        .collect();
    let x = Axis {
        title: "n-tokens, the most valuable first",
        range: (0.0, num_n_tokens as f64),
        num_ticks: 5,
        format: short,
    };
    let y = Axis { title: "share of all savings", range: (0.0, 1.0), num_ticks: 5, format: whole_percent };
    let label = "Share of all savings by the number of n-tokens; the table beside it names points of it";
    let rows: Vec<Value> = covering
        .iter()
        .map(|(share, num)| {
            context! { share, num, of_all => *num as f64 / num_n_tokens.max(1) as f64 }
        })
        .collect();
    context! { plot => safe(plot::line(label, &x, &y, &points, &dots)), rows }
}

fn removed(report: &Report) -> Value {
    context! {
        num_occurring => report.removed.tokens.len(),
        shown => report.removed.tokens.iter().take(NUM_REMOVED_SHOWN).map(from).collect::<Vec<_>>(),
        num_occurrences => report.removed.num_occurrences,
        num_extra_tokens => report.removed.num_extra_tokens,
    }
}

fn savings(report: &Report) -> Value {
    let savings = &report.savings;
    let bins = bins(&savings.steps);
    let columns: Vec<Column> = bins
        .iter()
        .map(|bin| Column {
            from: bin.from,
            to: bin.to,
            value: bin.num_documents as f64,
            hint: format!("{}: {} documents", bin.name(), number(bin.num_documents)),
        })
        .collect();
    let range = (bins.first().map_or(0.0, |bin| bin.from), bins.last().map_or(1.0, |bin| bin.to));
    let x = Axis { title: "fewer tokens in a document", range, num_ticks: 6, format: whole_percent };
    let quartiles = &savings.quartiles;
    let mark = Mark { at: quartiles.median, label: format!("median {}", percent(quartiles.median)) };
    let label = "Number of documents by what they save; the table beside it has the quartiles";
    let highlight = Some((mark, (quartiles.lower, quartiles.upper)));
    let rows: Vec<Value> = bins
        .iter()
        .filter(|bin| bin.num_documents > 0)
        .map(|bin| context! { name => bin.name(), num_documents => bin.num_documents })
        .collect();
    context! {
        plot => safe(plot::columns(label, &x, "documents", &columns, highlight)),
        rows,
        ..from(savings)
    }
}

/// A bar of the histogram, in shares of 1: from (in it) to (not in it).
struct Bin {
    from: f64,
    to: f64,
    num_documents: u64,
}

impl Bin {
    fn name(&self) -> String {
        format!("{} to {}", signed((self.from * 100.0).round() + 0.0, 0), whole_percent(self.to))
    }
}

fn bins(steps: &[(i64, u64)]) -> Vec<Bin> {
    let (Some((min, _)), Some((max, _))) = (steps.first(), steps.last()) else { return Vec::new() };
    let idx_of = |step: i64, points: i64| step.div_euclid(points * STEPS_PER_POINT);
    let num_bins = |points: i64| idx_of(*max, points) - idx_of(*min, points) + 1;
    let points = BIN_POINTS.into_iter().find(|points| num_bins(*points) <= MAX_BINS).unwrap_or(20);
    let first = idx_of(*min, points);
    let border = |idx: i64| (idx * points) as f64 / 100.0;
    let mut bins: Vec<Bin> = (first..first + num_bins(points))
        .map(|idx| Bin { from: border(idx), to: border(idx + 1), num_documents: 0 })
        .collect();
    for (step, num_documents) in steps {
        bins[(idx_of(*step, points) - first) as usize].num_documents += num_documents;
    }
    bins
}

fn example(example: &Example) -> Value {
    let num_n_tokens = example.adapted.iter().filter(|piece| !piece.base_texts.is_empty()).count();
    let (before, after) = (example.base.len(), example.adapted.len());
    let saved_share = 1.0 - after as f64 / before.max(1) as f64;
    context! { num_n_tokens, saved_share, ..from(example) }
}

/// The base tokens of an n-token as a hint: `git | ·status`.
fn border_list(texts: Vec<String>) -> String {
    texts.iter().map(|text| visible::plain(text)).collect::<Vec<_>>().join(" | ")
}

fn share_of(num_tokens: u64, report: &Report) -> f64 {
    num_tokens as f64 / report.num_saved_tokens.max(1) as f64
}

fn whole_percent(share: f64) -> String {
    format!("{}\u{202F}%", signed((share * 100.0).round() + 0.0, 0))
}

fn from(figures: impl Serialize) -> Value {
    Value::from(Serde(figures))
}

#[cfg(test)]
mod tests;
