use std::fmt::Write;

use tokio::net::TcpListener;

use crate::process::print;

/// What a service prints once it serves: one line for each address, then an empty one.
pub(crate) struct Banner {
    text: String,
    first_url: String,
}

/// What the example must suit.
pub(crate) struct Example {
    /// As a shell reads it; none where no key is asked for.
    pub(crate) key: Option<String>,
    /// Whether the model takes conversations.
    pub(crate) is_chat: bool,
    pub(crate) max_model_len: usize,
}

/// The example's output, where the context is long enough.
const MAX_EXAMPLE_TOKENS: usize = 96;

impl Banner {
    pub(crate) fn new(listener: &TcpListener, what: &str) -> anyhow::Result<Self> {
        let mut banner = Self { text: String::new(), first_url: String::new() };
        banner.first_url = banner.add(listener, what)?;
        Ok(banner)
    }

    /// Adds an address and returns it as a URL.
    pub(crate) fn add(&mut self, listener: &TcpListener, what: &str) -> anyhow::Result<String> {
        let address = listener.local_addr()?;
        let url = format!("http://{address}");
        writeln!(self.text, "listening on {url} ({what})")?;
        Ok(url)
    }

    /// Adds a line to copy that this model and these settings answer.
    pub(crate) fn with_example(mut self, example: &Example) -> Self {
        let key = match &example.key {
            None => String::new(),
            Some(key) => format!(" -H \"Authorization: Bearer {key}\""),
        };
        let (route, prompt) = if example.is_chat {
            ("chat/completions", "\"messages\": [{\"role\": \"user\", \"content\": \"git rebase\"}]")
        } else {
            ("completions", "\"prompt\": \"git rebase\"")
        };
        let max_tokens = MAX_EXAMPLE_TOKENS.min(example.max_model_len / 2).max(1);
        // Writing to a string does not fail.
        let _ = writeln!(
            self.text,
            "try: curl {}/v1/{route} -H 'Content-Type: application/json'{key} -d '{{{prompt}, \"max_tokens\": \
             {max_tokens}, \"temperature\": 0}}'",
            self.first_url
        );
        self
    }

    pub(crate) fn print(self) -> anyhow::Result<()> {
        // The empty line says that nothing more follows.
        print(&format!("fused {}\n{}", env!("CARGO_PKG_VERSION"), self.text))?;
        print("")
    }

    pub(crate) fn first_url(&self) -> &str {
        &self.first_url
    }
}
