use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why something cannot be had from a hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The hub cannot be reached, or breaks off.
    #[error("{url} does not answer")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Why.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The hub says no.
    #[error("{url} answers {status}{}", advice(*.status))]
    Refused {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The hub's answer is none that is safe to use, or makes no sense.
    #[error("{url} answers what no hub does: {problem}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A transfer broke off too often.
    #[error("the transfer from {url} broke off {num_attempts} times without any progress")]
    BrokenOff {
        /// What was asked for.
        url: String,
        /// How often it was tried.
        num_attempts: usize,
    },
    /// Another process has begun to download the file and does not go on.
    #[error(
        "another process holds {} and has downloaded nothing for {}: end it, or try again",
        lock.display(),
        humane(*.patience)
    )]
    Busy {
        /// The lock's file.
        lock: PathBuf,
        /// How long it was waited for.
        patience: Duration,
    },
    /// The cache cannot be written or read.
    #[error("cannot use {} in the cache", path.display())]
    Cache {
        /// Which file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

impl HubError {
    /// Whether another name, revision or token could help: else the hub, the network or the disk is at fault.
    pub(crate) fn is_the_callers(&self) -> bool {
        matches!(self, Self::Refused { status: 400..=499, .. })
    }

    pub(super) fn answer(url: &str, problem: impl Into<String>) -> Self {
        Self::Answer { url: url.to_owned(), problem: problem.into() }
    }
}

fn advice(status: u16) -> &'static str {
    match status {
        401 | 403 => ": no such model, or one that needs another HF_TOKEN",
        404 => ": no such model, revision or file",
        _ => "",
    }
}

fn humane(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}
