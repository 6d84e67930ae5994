//! Builds a patch vocabulary and says what it saves on text it has not seen:
//! `build_patch TOKENIZER_JSON TRAIN_TXT HELDOUT_TXT ADD OUT`.

use std::error::Error;
use std::fs;
use std::io::{Write, stdout};

use fused_vocabulary::build::{BuildRequest, build};
use fused_vocabulary::{SpecialTokens, Vocabulary};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [tokenizer, train, heldout, add, out] = arguments.as_slice() else {
        return Err("expected TOKENIZER_JSON TRAIN_TXT HELDOUT_TXT ADD OUT".into());
    };
    let tokenizer_json = fs::read(tokenizer)?;
    let corpus = [fs::read_to_string(train)?];
    let request = BuildRequest { tokenizer_json: &tokenizer_json, corpus: &corpus, add: add.parse()? };
    let (patch, report) = build(&request)?;
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
