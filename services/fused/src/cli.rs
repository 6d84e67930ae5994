//! What can be typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use fused_settings::Flags;

use crate::bench::Bench;

/// Serves a language model whose vocabulary was adapted to one domain.
#[derive(Parser, Debug)]
#[command(name = "fused", version, about, propagate_version = true, args_override_self = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run gateway, tokenizer and engine in one process
    Serve(Service),
    /// Run the gateway: OpenAI REST in front of a tokenizer
    Gateway(Service),
    /// Run the tokenizer: the text API in front of engines
    Tokenizer(Service),
    /// Run an engine: the token API
    Engine(Service),
    /// Work with patch vocabularies
    #[command(subcommand)]
    Vocab(Vocab),
    /// Write a model directory adapted to a patch vocabulary
    Adapt(Adapt),
    /// Measure models on held-out text: bits per byte, tokens per byte
    Eval(Eval),
    /// Measure a server: tokens per second, time to first token; or simulate one
    Bench(Box<Bench>),
    /// Ask a service whether it is ready; exits with 0 if it is
    Probe(Probe),
    /// Render one chat template from standard input; started by a tokenizer
    #[command(hide = true, name = fused_tokenizer::RENDER_COMMAND)]
    RenderChatTemplate,
}

#[derive(Args, Debug)]
pub(crate) struct Service {
    #[command(flatten)]
    pub(crate) flags: Flags,
    /// Model directory or hub id ORG/NAME@REVISION, as --model
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub(crate) positional_model: Option<String>,
    /// Print the effective settings as TOML and exit
    #[arg(long)]
    pub(crate) print_settings: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Vocab {
    /// Choose n-tokens for a domain from a corpus
    Build(VocabBuild),
    /// Write a corpus as token ids of the adapted model, for fine-tuning
    Encode(VocabEncode),
    /// Write a page about what a patch vocabulary does to a held-out text
    Report(VocabReport),
    /// Make a patch vocabulary of what AdaptiVocab's own code wrote
    Import(VocabImport),
}

#[derive(Args, Debug)]
pub(crate) struct VocabBuild {
    /// Model directory or hub id whose tokenizer is adapted [default: the demo model in this binary]
    #[arg(long, value_name = "DIR_OR_ID")]
    pub(crate) model: Option<String>,
    /// Tokenizer that is adapted, where there is no model: a tokenizer.json, a directory with one, or a hub id
    #[arg(long, value_name = "FILE_OR_DIR_OR_ID", conflicts_with = "model")]
    pub(crate) tokenizer: Option<String>,
    #[command(flatten)]
    pub(crate) corpus: CorpusArgs,
    /// How many n-tokens to add
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) add: usize,
    /// How many little-used tokens to remove [default: as many as are added; 0 with --mode extend]
    #[arg(long, value_name = "N")]
    pub(crate) remove: Option<usize>,
    /// The longest n-token, in base tokens [default: 32; 3 with --selection reference]
    #[arg(long, value_name = "N")]
    pub(crate) max_n: Option<usize>,
    /// Whether n-tokens take the ids of removed tokens or new ones
    #[arg(long, value_enum, default_value_t = ModeArg::Replace)]
    pub(crate) mode: ModeArg,
    /// Whether n-tokens may reach across word borders
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    pub(crate) cross_words: bool,
    /// Whether n-tokens may reach across line breaks: false for a model that is served without fine-tuning, which reads
    /// such n-tokens badly; else true, which saves more
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    pub(crate) cross_lines: bool,
    /// How tokens are chosen: so that text takes the fewest, or as AdaptiVocab's own code does
    #[arg(long, value_enum, default_value_t = SelectionArg::Exact)]
    pub(crate) selection: SelectionArg,
    /// A token that is never removed, or a file with one a line; may be repeated
    #[arg(long, value_name = "FILE_OR_TOKEN")]
    pub(crate) keep: Vec<String>,
    /// Where to write the patch vocabulary
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Threads to work on [default: one a core]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) threads: Option<usize>,
}

#[derive(Args, Debug)]
pub(crate) struct VocabEncode {
    /// Model directory or hub id [default: the demo model in this binary]
    #[arg(long, value_name = "DIR_OR_ID")]
    pub(crate) model: Option<String>,
    /// Patch vocabulary, or `none` [default: the one in the model's directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) patch_vocabulary: Option<String>,
    #[command(flatten)]
    pub(crate) corpus: CorpusArgs,
    /// npy: one array of 32-bit ids; parquet: a row a document
    #[arg(long, value_enum)]
    pub(crate) to: EncodeTo,
    /// What stands between documents in an array: a model id, the model's end-of-text token, or nothing [default: eos]
    #[arg(long, value_name = "ID|eos|none")]
    pub(crate) separator: Option<String>,
    /// Where to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Threads to work on [default: one a core]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) threads: Option<usize>,
}

#[derive(Args, Debug)]
pub(crate) struct CorpusArgs {
    /// Text of the domain: plain (documents divided by lines `<|endoftext|>`), JSON lines, a JSON array of records or
    /// Parquet; .gz and .zst too; a folder; `-` for standard input; may be repeated
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub(crate) corpus: Vec<PathBuf>,
    /// The field or column of JSON lines and Parquet that has the text; where it is given, standard input and files of
    /// unknown kind are JSON lines, else plain text [default: text]
    #[arg(long, value_name = "NAME")]
    pub(crate) field: Option<String>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ModeArg {
    /// N-tokens take the ids of removed tokens
    Replace,
    /// N-tokens get new ids
    Extend,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SelectionArg {
    /// The fewest tokens
    Exact,
    /// As AdaptiVocab's own code
    Reference,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EncodeTo {
    /// A NumPy array
    Npy,
    /// A Parquet table
    Parquet,
}

#[derive(Args, Debug)]
pub(crate) struct VocabReport {
    /// Model directory or hub id whose tokenizer is adapted [default: the demo model in this binary]
    #[arg(long, value_name = "DIR_OR_ID")]
    pub(crate) model: Option<String>,
    /// Patch vocabulary [default: the one in the model's directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) patch_vocabulary: Option<String>,
    /// Held-out text of the domain, in any form that --corpus of `vocab build` takes; may be repeated
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub(crate) text: Vec<PathBuf>,
    /// The field or column with the text [default: text]
    #[arg(long, value_name = "NAME")]
    pub(crate) field: Option<String>,
    /// Where to write the page, one HTML file that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Where to write the figures as JSON, too
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Number of the document to show before and after [default: one that saves as much as the median]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) example: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct VocabImport {
    /// patch_tokenizer.pkl, or the folder of removed_tokens.pkl, added_ngrams.pkl and inputs_ids_convert.pkl
    #[arg(value_name = "PKL_OR_DIR")]
    pub(crate) artefacts: PathBuf,
    /// Model directory or hub id that the vocabulary is for [default: the tokenizer in patch_tokenizer.pkl]
    #[arg(long, value_name = "DIR_OR_ID")]
    pub(crate) model: Option<String>,
    /// Where to write the patch vocabulary
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Where to write the tokenizer.json that it belongs to
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer_out: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Adapt {
    /// Base model: a directory or hub id [default: the demo model in this binary]
    #[arg(long, value_name = "DIR_OR_ID")]
    pub(crate) model: Option<String>,
    /// Patch vocabulary to adapt it to [default: patch_vocabulary.json of the model]
    #[arg(long, value_name = "FILE")]
    pub(crate) patch_vocabulary: Option<String>,
    /// Directory to write; must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// How the rows of n-tokens are averaged from those of their base tokens
    #[arg(long, value_enum, default_value_t = Init::Exponential)]
    pub(crate) init: Init,
    /// The most bytes of tensors in one file
    #[arg(long, value_name = "BYTES", default_value_t = 5_000_000_000)]
    pub(crate) max_shard_bytes: u64,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
pub(crate) enum Init {
    /// Halving weights, the largest on the last base token of an input row and on the first of an output row
    Exponential,
    /// Equal weights
    Mean,
}

#[derive(Args, Debug)]
pub(crate) struct Eval {
    /// Model directory or hub id; may be repeated [default: the demo model in this binary]
    #[arg(long, value_name = "DIR_OR_ID")]
    pub(crate) model: Vec<String>,
    /// One for each --model, in their order; `none`: the base model [default: patch_vocabulary.json of the model]
    #[arg(long, value_name = "FILE")]
    pub(crate) patch_vocabulary: Vec<String>,
    /// Held-out text, in any form that --corpus of `vocab build` takes; may be repeated
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub(crate) text: Vec<PathBuf>,
    /// The field or column with the text [default: text]
    #[arg(long, value_name = "NAME")]
    pub(crate) field: Option<String>,
    /// How documents are read
    #[arg(long, value_enum, default_value_t = Documents::Apart)]
    pub(crate) documents: Documents,
    /// Tokens of a window, the first included [default: the model's context, at most 4096]
    #[arg(long, value_name = "N", value_parser = at_least_two)]
    pub(crate) context: Option<usize>,
    /// Tokens from one window to the next where the text is longer; the others are its context [default: half]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) stride: Option<usize>,
    /// Stop before the document that would exceed so many bytes
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_bytes: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Documents {
    /// Each alone
    Apart,
    /// One stream, in which a document stands behind the ones before it
    Joined,
}

#[derive(Args, Debug)]
pub(crate) struct Probe {
    /// http://HOST:PORT, which asks its /ready, http://HOST:PORT/PATH, or grpc://HOST:PORT[/SERVICE] for grpc.health.v1
    pub(crate) url: String,
    /// Seconds to wait for an answer
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|&number| number > 0)
        .ok_or_else(|| format!("`{text}` is not a number from 1 on"))
}

fn at_least_two(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|&number| number > 1)
        .ok_or_else(|| format!("`{text}` is not a number from 2 on"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| format!("`{text}` is not a number of seconds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(arguments: &str) -> fused_settings::Settings {
        let cli = Cli::try_parse_from(arguments.split(' ')).unwrap();
        let Command::Serve(service) = cli.command else { panic!("not serve") };
        fused_settings::load(&service.flags.with_model(service.positional_model)).unwrap()
    }

    #[test]
    fn the_last_of_two_equal_flags_wins_and_lists_keep_both() {
        let settings = settings(
            "fused serve m --port 1 --port 2 --api-key a --max-num-seqs 3 --api-key b --max-num-sequences 4",
        );
        assert_eq!((settings.model.as_deref(), settings.port), (Some("m"), 2));
        assert_eq!(
            (settings.api_key, settings.max_num_sequences),
            (vec!["a".to_owned(), "b".to_owned()], Some(4))
        );
    }

    #[test]
    fn a_model_is_named_once() {
        assert!(Cli::try_parse_from("fused serve a --model b".split(' ')).is_err());
    }
}
