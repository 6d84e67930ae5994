//! A `patch_tokenizer.pkl`: whatever is imported must be a vocabulary that its tokenizer loads.
#![no_main]

use fused_vocabulary::Vocabulary;
use fused_vocabulary::import::{Artefacts, import};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(imported) = import(&Artefacts::PatchTokenizer(data), None) {
        assert!(Vocabulary::load(&imported.tokenizer_json, Some(imported.patch)).is_ok());
    }
});
