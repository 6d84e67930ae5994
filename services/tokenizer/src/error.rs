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
    /// `tokenizer_config.json`, or a file beside it, is not what it should be.
    #[error("{file} cannot be parsed")]
    TokenizerConfig {
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A chat template's file is not text.
    #[error("{file} is not UTF-8")]
    ChatTemplateText {
        /// The file.
        file: String,
        /// Where it is not.
        #[source]
        source: std::str::Utf8Error,
    },
    /// The chat template that is given in place of the model's cannot be used.
    #[error("the chat template that the setting chat_template gives cannot be used: {0}")]
    GivenChatTemplate(String),
    /// `generation_config.json` is not what it should be.
    #[error("generation_config.json cannot be parsed")]
    GenerationConfig(#[source] serde_json::Error),
    /// `generation_config.json` recommends what no request may ask for.
    #[error(
        "generation_config.json: `{key}` is {value}, which is out of range; with generation_config = none it is not read"
    )]
    GenerationDefault {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
    },
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
