//! Builds a patch vocabulary and says what it saves on text it has not seen:
//! `build_patch TOKENIZER_JSON TRAIN_TXT HELDOUT_TXT ADD OUT [reference]`.

use std::error::Error;
use std::fs;
use std::io::{Write, stdout};

use fused_vocabulary::build::{BuildRequest, Lines, Selection, Unobserved, Words, build};
use fused_vocabulary::{Mode, SpecialTokens, Vocabulary};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let selection = match arguments.get(5).map(String::as_str) {
        None | Some("exact") => Selection::Exact,
        Some("reference") => Selection::Reference,
        Some(other) => return Err(format!("selection {other} is not exact or reference").into()),
    };
    let [tokenizer, train, heldout, add, out, ..] = arguments.as_slice() else {
        return Err("expected TOKENIZER_JSON TRAIN_TXT HELDOUT_TXT ADD OUT [reference]".into());
    };
    let tokenizer_json = fs::read(tokenizer)?;
    let text = fs::read_to_string(train)?;
    let documents =
        text.split("<|endoftext|>\n").map(|document| Ok::<_, fused_vocabulary::Error>(document.to_owned()));
    let add = add.parse()?;
    let request = BuildRequest {
        tokenizer_json: &tokenizer_json,
        add,
        remove: add,
        max_n: BuildRequest::default_max_n(selection),
        mode: Mode::Replace,
        words: Words::Cross,
        lines: Lines::Cross,
        selection,
        keep: &[],
        scratch: &std::env::temp_dir(),
    };
    let (patch, report) = build(&request, documents, &Unobserved)?;
    fs::write(out, patch.to_json())?;

    let vocabulary = Vocabulary::load(&tokenizer_json, Some(patch))?;
    let (mut num_base, mut num_tokens, mut num_longer) = (0, 0, 0);
    for document in fs::read_to_string(heldout)?.split("<|endoftext|>\n") {
        let encoding = vocabulary.encode(document, SpecialTokens::Omit)?;
        num_base += encoding.num_base_tokens;
        num_tokens += encoding.ids.len();
        num_longer += usize::from(encoding.ids.len() > encoding.num_base_tokens);
    }
    let saved = 100.0 * (1.0 - f64::from(num_tokens as u32) / f64::from(num_base.max(1) as u32));
    writeln!(stdout(), "train: {report}")?;
    writeln!(
        stdout(),
        "held out: {num_base} base tokens, {num_tokens} patched ({saved:.1} % fewer); longer: {num_longer}"
    )?;
    Ok(())
}
