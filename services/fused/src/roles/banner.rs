use std::fmt::Write;

use tokio::net::TcpListener;

use crate::process::print;

/// What a service prints once it serves: one line for each address, then an empty one.
pub(crate) struct Banner {
    text: String,
    first_url: String,
}

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

    /// Adds a line to copy.
    pub(crate) fn with_example(mut self, is_open: bool) -> Self {
        let key = if is_open { "" } else { " -H \"Authorization: Bearer $API_KEY\"" };
        // Writing to a string does not fail.
        let _ = writeln!(
            self.text,
            "try: curl {}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{{\"messages\": \
             [{{\"role\": \"user\", \"content\": \"git rebase\"}}], \"max_tokens\": 96, \"temperature\": 0}}'",
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
