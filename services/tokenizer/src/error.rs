/// Why the tokenizer cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the model cannot be read.
    #[error("the model's files cannot be read")]
    Files(#[from] fused_checkpoint::Error),
    /// The model has no tokenizer, or one that is not of its form.
    #[error(transparent)]
    Tokenizer(#[from] fused_adaptation::Error),
    /// Tokenizer or patch vocabulary are refused.
    #[error("the vocabulary cannot be loaded")]
    Vocabulary(#[from] fused_vocabulary::Error),
    /// `tokenizer_config.json` is not what it should be.
    #[error("tokenizer_config.json cannot be parsed")]
    TokenizerConfig(#[source] serde_json::Error),
    /// `chat_template.jinja` is not text.
    #[error("chat_template.jinja is not UTF-8")]
    ChatTemplate(#[source] std::str::Utf8Error),
    /// `tokenizer_config.json` names a token that the tokenizer does not have.
    #[error("tokenizer_config.json asks for {field} {token:?}, which tokenizer.json does not have")]
    UnknownToken {
        /// The setting.
        field: &'static str,
        /// The token's text.
        token: String,
    },
    /// The threads that encode cannot be started.
    #[error("the encoding threads cannot be started")]
    Threads(#[source] rayon::ThreadPoolBuildError),
}
