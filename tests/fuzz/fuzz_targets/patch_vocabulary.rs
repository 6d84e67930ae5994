//! A `patch_vocabulary.json`: whatever is read must be written as it is read.
#![no_main]

use fused_vocabulary::PatchVocabulary;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(patch) = PatchVocabulary::parse(data) {
        assert_eq!(PatchVocabulary::parse(patch.to_json().as_bytes()).ok(), Some(patch));
    }
});
