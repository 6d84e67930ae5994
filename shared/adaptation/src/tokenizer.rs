use fused_checkpoint::ModelFiles;
use fused_vocabulary::{TokenizerFiles, with_extra_tokens};

use crate::{Error, Result};

/// A model's `tokenizer.json`, with the tokens that only other files of its directory name. Whoever means the model's
/// vocabulary takes it from here: all services and tools must mean the same one.
///
/// # Errors
/// There is none; a file that cannot be read, or is not of its form.
pub fn tokenizer_json(files: &ModelFiles) -> Result<Vec<u8>> {
    const FILE: &str = "tokenizer.json";
    let tokenizer = files.read(FILE)?.ok_or_else(|| fused_checkpoint::Error::MissingFile {
        model: files.name().to_owned(),
        file: FILE.to_owned(),
    })?;
    let (config, special_tokens_map, added_tokens) = (
        files.read("tokenizer_config.json")?,
        files.read("special_tokens_map.json")?,
        files.read("added_tokens.json")?,
    );
    let beside = TokenizerFiles {
        config: config.as_deref(),
        special_tokens_map: special_tokens_map.as_deref(),
        added_tokens: added_tokens.as_deref(),
    };
    let whole = with_extra_tokens(&tokenizer, &beside);
    match whole {
        Ok(whole) => Ok(whole.into_owned()),
        Err(source) => Err(Error::Tokenizer { model: files.name().to_owned(), source }),
    }
}
