use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use ureq::Body;
use ureq::http::Response;

use super::client::{Client, Metadata};
use super::error::HubError;

type Result<T> = std::result::Result<T, HubError>;

/// A transfer that brings nothing new is tried this many times.
const MAX_VAIN_ATTEMPTS: usize = 5;
/// A file of which the hub does not say how long it is may have as much as one that is read into memory.
const MAX_UNANNOUNCED_BYTES: u64 = 256 << 20;
const BUFFER_BYTES: usize = 1 << 20;

/// Brings a file's bytes to `path`, going on from what is there. A transfer that breaks off is taken up again for as
/// long as something comes of it.
pub(super) fn transfer(
    client: &Client,
    url: &str,
    metadata: &Metadata,
    path: &Path,
    name: &str,
) -> Result<()> {
    let failed = |source| HubError::Cache { path: path.to_owned(), source };
    let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
    let mut progress = Progress { name, total_bytes: metadata.num_bytes, logged_tenths: 0 };
    tracing::info!(file = name, total_bytes = metadata.num_bytes, "downloading");
    let mut num_vain = 0;
    let mut broke_off = None;
    while num_vain < MAX_VAIN_ATTEMPTS {
        let mut start = file.metadata().map_err(failed)?.len();
        if metadata.num_bytes.is_some_and(|total| start > total) {
            file.set_len(0).map_err(failed)?;
            start = 0;
        }
        if start > 0 && metadata.num_bytes == Some(start) {
            break;
        }
        let answer = match client.bytes(url, start) {
            Ok(answer) => answer,
            Err(error @ HubError::Unreachable { .. }) => {
                num_vain += 1;
                broke_off = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        // The hub may not go on from the middle, or have the whole file differ from what it was.
        let goes_on = start > 0 && answer.status().as_u16() == 206 && starts_at(&answer, start);
        if start > 0 && !goes_on {
            file.set_len(0).map_err(failed)?;
            num_vain += 1;
            if answer.status().as_u16() != 200 {
                continue;
            }
        }
        let done = if goes_on { start } else { 0 };
        match receive(answer, &mut file, done, &mut progress) {
            Ok(()) => {}
            Err(Received::Disk(source)) => return Err(failed(source)),
            Err(Received::TooMuch) => {
                file.set_len(0).map_err(failed)?;
                return Err(HubError::answer(url, "more bytes than it announced"));
            }
            // The next attempt goes on.
            Err(Received::BrokeOff) => {}
        }
        let now = file.metadata().map_err(failed)?.len();
        match metadata.num_bytes {
            Some(total) if now < total => num_vain = if now > start { num_vain } else { num_vain + 1 },
            _ => break,
        }
    }
    let num_bytes = file.metadata().map_err(failed)?.len();
    if num_vain == MAX_VAIN_ATTEMPTS && metadata.num_bytes != Some(num_bytes) {
        let num_attempts = MAX_VAIN_ATTEMPTS;
        return Err(broke_off.unwrap_or(HubError::BrokenOff { url: url.to_owned(), num_attempts }));
    }
    file.sync_all().map_err(failed)?;
    tracing::info!(file = name, num_bytes, "downloaded");
    Ok(())
}

fn starts_at(answer: &Response<Body>, start: u64) -> bool {
    let range = answer.headers().get("content-range").and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {start}-")))
}

enum Received {
    BrokeOff,
    TooMuch,
    Disk(io::Error),
}

fn receive(
    answer: Response<Body>,
    file: &mut File,
    mut done: u64,
    progress: &mut Progress<'_>,
) -> std::result::Result<(), Received> {
    let most = progress.total_bytes.unwrap_or(MAX_UNANNOUNCED_BYTES);
    let mut body = answer.into_body().into_reader();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let num_bytes = match body.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(num_bytes) => num_bytes,
            Err(_) => return Err(Received::BrokeOff),
        };
        done += num_bytes as u64;
        if done > most {
            return Err(Received::TooMuch);
        }
        file.write_all(&buffer[..num_bytes]).map_err(Received::Disk)?;
        progress.at(done);
    }
}

/// Logs a download at every tenth: a server's log is not a terminal to draw a bar on.
struct Progress<'a> {
    name: &'a str,
    total_bytes: Option<u64>,
    logged_tenths: u64,
}

impl Progress<'_> {
    fn at(&mut self, num_bytes: u64) {
        let Some(total) = self.total_bytes.filter(|total| *total > 0) else { return };
        let tenths = num_bytes.saturating_mul(10) / total;
        if tenths > self.logged_tenths && tenths < 10 {
            self.logged_tenths = tenths;
            tracing::info!(file = self.name, percent = tenths * 10, "downloading");
        }
    }
}

/// Gives a complete file its name.
pub(super) fn complete(incomplete: &Path, blob: &Path) -> Result<()> {
    fs::rename(incomplete, blob).map_err(|source| HubError::Cache { path: blob.to_owned(), source })
}
