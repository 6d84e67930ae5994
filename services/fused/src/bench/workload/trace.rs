use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use fused_engine::simulation::Prompt;
use serde::Deserialize;

/// The largest file that is read.
const MAX_TRACE_BYTES: u64 = 1 << 30;
/// The longest prompt and output that a row may have.
const MAX_TOKENS: f64 = 100e6;
/// Tokens of a block that Mooncake's hashes are of.
const MOONCAKE_BLOCK_LEN: usize = 512;
/// What can be read, for messages.
const KNOWN: &str = "known are Azure's (TIMESTAMP,ContextTokens,GeneratedTokens), vidur's \
    (arrived_at,num_prefill_tokens,num_decode_tokens; also without arrived_at), lengths \
    (timestamp_ms,prompt_tokens,output_tokens), and Mooncake's JSON lines";

/// A recorded request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// Seconds from some moment; none where lengths only were recorded.
    pub(super) at_s: Option<f64>,
    pub(super) prompt: Prompt,
    pub(super) num_output: usize,
}

/// Reads a trace, in order of time. Its format is told by its first line.
///
/// # Errors
/// The line at fault, and what is wrong with it.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<Row>> {
    let file = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, file) = file.with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(metadata.len() <= MAX_TRACE_BYTES, "{} is larger than {MAX_TRACE_BYTES} bytes", path.display());
    let lines = BufReader::new(file.take(MAX_TRACE_BYTES)).lines();
    parse(lines).with_context(|| path.display().to_string())
}

fn parse(lines: impl Iterator<Item = std::io::Result<String>>) -> anyhow::Result<Vec<Row>> {
    let mut format = None;
    let mut rows = Vec::new();
    for (idx, line) in lines.enumerate() {
        let line = line.with_context(|| format!("line {}", idx + 1))?;
        // A mark that some programs put before text.
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            continue;
        }
        match &format {
            None if line.starts_with('{') => {
                format = Some(Format::Mooncake);
                rows.push(mooncake(line).with_context(|| format!("line {}", idx + 1))?);
            }
            None => format = Some(Format::Columns(Columns::find(line)?)),
            Some(Format::Mooncake) => rows.push(mooncake(line).with_context(|| format!("line {}", idx + 1))?),
            Some(Format::Columns(columns)) => {
                rows.push(columns.row(line).with_context(|| format!("line {}", idx + 1))?);
            }
        }
    }
    ensure!(!rows.is_empty(), "there is no request in it");
    // All rows have a time or none has.
    rows.sort_by(|a, b| a.at_s.partial_cmp(&b.at_s).unwrap_or(std::cmp::Ordering::Equal));
    Ok(rows)
}

enum Format {
    Mooncake,
    Columns(Columns),
}

/// Where in a line of comma-separated values something stands.
struct Columns {
    at: Option<(usize, Time)>,
    num_prompt: usize,
    num_output: usize,
}

/// How a time is written.
#[derive(Clone, Copy)]
enum Time {
    Seconds,
    Milliseconds,
    Date,
}

impl Columns {
    fn find(header: &str) -> anyhow::Result<Self> {
        let names: Vec<_> = header.split(',').map(str::trim).collect();
        let column = |name: &str| names.iter().position(|own| *own == name);
        let known = [
            ("TIMESTAMP", Time::Date, "ContextTokens", "GeneratedTokens"),
            ("arrived_at", Time::Seconds, "num_prefill_tokens", "num_decode_tokens"),
            ("timestamp_ms", Time::Milliseconds, "prompt_tokens", "output_tokens"),
        ];
        for (at, time, prompt, output) in known {
            if let (Some(num_prompt), Some(num_output)) = (column(prompt), column(output)) {
                return Ok(Self { at: column(at).map(|idx| (idx, time)), num_prompt, num_output });
            }
        }
        bail!("line 1: no trace begins with `{:.80}`; {KNOWN}", header.escape_debug());
    }

    fn row(&self, line: &str) -> anyhow::Result<Row> {
        let fields: Vec<_> = line.split(',').map(str::trim).collect();
        let field =
            |idx: usize| fields.get(idx).copied().with_context(|| format!("there is no field {}", idx + 1));
        let at_s = match self.at {
            Some((idx, time)) => Some(time.parse(field(idx)?)?),
            None => None,
        };
        Ok(Row {
            at_s,
            prompt: Prompt::unique(num_tokens(field(self.num_prompt)?)?),
            num_output: num_tokens(field(self.num_output)?)?,
        })
    }
}

impl Time {
    fn parse(self, text: &str) -> anyhow::Result<f64> {
        let number = || text.parse().ok().filter(|number: &f64| number.is_finite());
        let at_s = match self {
            Self::Seconds => number(),
            Self::Milliseconds => number().map(|ms| ms / 1e3),
            Self::Date => date_s(text),
        };
        at_s.with_context(|| format!("`{text:.40}` is no time"))
    }
}

/// Seconds since 1970, of a time with a zone or without: all of a trace are of one.
fn date_s(text: &str) -> Option<f64> {
    let timestamp = text.parse::<jiff::Timestamp>().ok().or_else(|| {
        let date = text.parse::<jiff::civil::DateTime>().ok()?;
        date.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
    });
    timestamp.map(|timestamp| timestamp.as_nanosecond() as f64 / 1e9)
}

/// A request has a token in and a token out at least, whatever was recorded.
fn num_tokens(text: &str) -> anyhow::Result<usize> {
    let number = text.parse().ok().filter(|number: &f64| (0.0..=MAX_TOKENS).contains(number));
    let number = number.with_context(|| format!("`{text:.40}` is no number of tokens"))?;
    Ok((number.round() as usize).max(1))
}

#[derive(Deserialize)]
struct MooncakeRow {
    /// Milliseconds.
    timestamp: f64,
    input_length: u32,
    output_length: u32,
    /// One a block of the prompt, each standing for it and all before it.
    hash_ids: Vec<u64>,
}

fn mooncake(line: &str) -> anyhow::Result<Row> {
    let row: MooncakeRow = serde_json::from_str(line).context("no request of a Mooncake trace")?;
    ensure!(row.timestamp.is_finite(), "`timestamp` is no time");
    let tokens = |num: u32| (num as usize).max(1);
    ensure!(f64::from(row.input_length.max(row.output_length)) <= MAX_TOKENS, "more tokens than can be");
    Ok(Row {
        at_s: Some(row.timestamp / 1e3),
        prompt: Prompt {
            num_tokens: tokens(row.input_length),
            block_ids: row.hash_ids,
            block_len: MOONCAKE_BLOCK_LEN,
        },
        num_output: tokens(row.output_length),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse_text(text: &str) -> anyhow::Result<Vec<Row>> {
        parse(text.lines().map(|line| Ok(line.to_owned())))
    }

    fn short(text: &str) -> Vec<(Option<f64>, usize, usize)> {
        let row = |row: &Row| (row.at_s, row.prompt.num_tokens, row.num_output);
        parse_text(text).unwrap().iter().map(row).collect()
    }

    #[test]
    fn every_format_is_told_by_its_first_line() {
        let azure = "\u{feff}TIMESTAMP,ContextTokens,GeneratedTokens\n1970-01-01 00:00:03.5000000,374,44\n\
            1970-01-01 00:00:01.0000000,5,0\n";
        assert_eq!(short(azure), [(Some(1.0), 5, 1), (Some(3.5), 374, 44)]);
        let newer = "TIMESTAMP,ContextTokens,GeneratedTokens\n1970-01-01 00:00:03.25+00:00,1,2\n";
        assert_eq!(short(newer), [(Some(3.25), 1, 2)]);
        let vidur = "arrived_at,num_prefill_tokens,num_decode_tokens\n4.25,396,109\n";
        assert_eq!(short(vidur), [(Some(4.25), 396, 109)]);
        let arxiv =
            "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n3772,54,3826,69.8\n2,1,3,2\n";
        assert_eq!(short(arxiv), [(None, 3772, 54), (None, 2, 1)]);
        let lengths = "timestamp_ms,prompt_tokens,output_tokens\r\n6011,178,8\r\n";
        assert_eq!(short(lengths), [(Some(6.011), 178, 8)]);
        let mooncake = r#"{"timestamp": 40, "input_length": 600, "output_length": 3, "hash_ids": [7, 9]}"#;
        assert_eq!(short(mooncake), [(Some(0.04), 600, 3)]);
        let prompt = &parse_text(mooncake).unwrap()[0].prompt;
        assert_eq!((&prompt.block_ids[..], prompt.block_len), (&[7, 9][..], 512));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let header = "arrived_at,num_prefill_tokens,num_decode_tokens\n";
        for (text, message) in [
            ("", "there is no request in it"),
            (header, "there is no request in it"),
            ("a,b\n1,2\n", "line 1: no trace begins with `a,b`"),
            (&format!("{header}1,2,3\n\n1,2\n"), "line 4: there is no field 3"),
            (&format!("{header}x,2,3\n"), "line 2: `x` is no time"),
            (&format!("{header}1,-2,3\n"), "line 2: `-2` is no number of tokens"),
            (&format!("{header}NaN,2,3\n"), "line 2: `NaN` is no time"),
            ("{\"timestamp\": 1}\n", "line 1: no request of a Mooncake trace: missing field `input_length`"),
        ] {
            let error = format!("{:#}", parse_text(text).unwrap_err());
            assert!(error.starts_with(message), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(
            header in "(arrived_at,|TIMESTAMP,)?(num_prefill_tokens,num_decode_tokens)?",
            rows in "(.*\n){0,4}",
        ) {
            let text = format!("{header}\n{rows}");
            let _ = parse_text(&text);
        }
    }
}
