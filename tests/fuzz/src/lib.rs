//! What is fuzzed: one function for each kind of bytes that come from outside. None may panic, hang or end the process,
//! whatever the bytes are; what else must hold is asserted.

use std::fs;
use std::sync::LazyLock;

use axum::body::Body;
use axum::http::Request;
use fused_checkpoint::{Checkpoint, ModelConfig, ModelFiles};
use fused_gateway::Gateway;
use fused_lifecycle::Lifecycle;
use fused_vocabulary::import::{Artefacts, EmbeddingMatrix, import};
use fused_vocabulary::{PatchVocabulary, Vocabulary};
use tempfile::TempDir;
use tower::ServiceExt;

/// Every target with its name.
pub const TARGETS: [(&str, fn(&[u8])); 8] = [
    ("pickle", pickle),
    ("embedding", embedding),
    ("patch_vocabulary", patch_vocabulary),
    ("config", config),
    ("safetensors", safetensors),
    ("tokenizer", tokenizer),
    ("chat_template", chat_template),
    ("http", http),
];

/// A `patch_tokenizer.pkl`: whatever is imported must be a vocabulary that its tokenizer loads.
pub fn pickle(data: &[u8]) {
    if let Ok(imported) = import(&Artefacts::PatchTokenizer(data), None) {
        assert!(Vocabulary::load(&imported.tokenizer_json, Some(imported.patch)).is_ok());
    }
}

/// A pickled embedding matrix.
pub fn embedding(data: &[u8]) {
    if let Ok(matrix) = EmbeddingMatrix::parse(data.to_vec()) {
        assert_eq!(matrix.bytes().len(), matrix.num_rows() * matrix.num_cols() * 4);
    }
}

/// A `patch_vocabulary.json`: whatever is read must be written as it is read.
pub fn patch_vocabulary(data: &[u8]) {
    if let Ok(patch) = PatchVocabulary::parse(data) {
        assert_eq!(PatchVocabulary::parse(patch.to_json().as_bytes()).ok(), Some(patch));
    }
}

/// A model's directory with one file in it.
fn model(file: &str, data: &[u8]) -> Option<(TempDir, ModelFiles)> {
    let dir = TempDir::new().ok()?;
    fs::write(dir.path().join(file), data).ok()?;
    let files = ModelFiles::open(dir.path()).ok()?;
    Some((dir, files))
}

/// A `config.json`.
pub fn config(data: &[u8]) {
    if let Some((_dir, files)) = model("config.json", data) {
        let _ = ModelConfig::parse(&files);
    }
}

/// A safetensors file: every tensor that it says it has must be in it.
pub fn safetensors(data: &[u8]) {
    let Some((_dir, files)) = model("model.safetensors", data) else { return };
    if let Ok(checkpoint) = Checkpoint::open(&files) {
        let num_bytes: usize = checkpoint.stored().iter().map(|tensor| tensor.bytes.len()).sum();
        assert!(num_bytes <= data.len());
    }
}

/// A `tokenizer.json`: what is loaded must encode.
pub fn tokenizer(data: &[u8]) {
    let Ok(vocabulary) = Vocabulary::load(data, None) else { return };
    let (mut encoder, mut ids) = (vocabulary.encoder(), Vec::new());
    if encoder.push("Text, 1 <|endoftext|>\n", &mut ids).is_ok() {
        let _ = encoder.finish(&mut ids);
    }
}

/// A chat template.
pub fn chat_template(data: &[u8]) {
    let Ok(template) = std::str::from_utf8(data) else { return };
    let messages =
        serde_json::json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]);
    let job = serde_json::json!({
        "template": template,
        "context": {"messages": messages, "add_generation_prompt": true, "bos_token": "<s>", "tools": null},
    });
    assert!(fused_tokenizer::answer_render_job(job.to_string().as_bytes()).is_ok());
}

/// The first byte chooses a route, the rest is the body. There is no text service behind: what is good is 503.
pub fn http(data: &[u8]) {
    static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    });
    static ROUTER: LazyLock<axum::Router> = LazyLock::new(|| {
        let _context = RUNTIME.enter();
        let (_, nowhere) = tokio::sync::watch::channel(Vec::new());
        Gateway::new(fused_gateway::Config::default(), nowhere, &Lifecycle::new()).router()
    });
    const ROUTES: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"];
    let Some((route, body)) = data.split_first() else { return };
    let request = Request::post(ROUTES[usize::from(*route) % ROUTES.len()])
        .header("content-type", "application/json")
        .body(Body::from(body.to_vec()))
        .expect("a request");
    let answer = RUNTIME.block_on(async { ROUTER.clone().oneshot(request).await }).expect("an answer");
    assert!(matches!(answer.status().as_u16(), 200 | 400..=499 | 503), "{}", answer.status());
}
