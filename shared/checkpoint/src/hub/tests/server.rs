use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What was asked for.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) range: Option<(usize, Option<usize>)>,
    pub(super) token: Option<String>,
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
    /// Of the body; then the connection breaks off.
    pub(super) sent_bytes: Option<usize>,
}

impl Answer {
    pub(super) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: BTreeMap::new(), body: body.into(), sent_bytes: None }
    }

    pub(super) fn with(mut self, header: &str, value: &str) -> Self {
        self.headers.insert(header.to_owned(), value.to_owned());
        self
    }
}

/// A hub of one model, `org/tiny`, that answers as the real one does, and says which paths were asked for.
pub(super) fn serve(files: BTreeMap<&'static str, Vec<u8>>) -> (String, Receiver<String>) {
    serve_with(move |request| answer(request, &files))
}

/// One that answers as it likes.
pub(super) fn serve_with(answer: impl Fn(&Request) -> Answer + Send + 'static) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (requests, seen) = sync_channel(100);
    thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that hangs up early is its own test's matter.
            let _ = exchange(&stream.unwrap(), &answer, &requests);
        }
    });
    (endpoint, seen)
}

fn exchange(
    mut stream: &TcpStream,
    answer: &impl Fn(&Request) -> Answer,
    requests: &SyncSender<String>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let line = lines.next().unwrap_or(Ok(String::new()))?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request { method, path, range: None, token: None };
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(token) = line.strip_prefix("authorization: bearer ") {
            request.token = Some(token.to_owned());
        }
        if let Some((start, end)) = line.strip_prefix("range: bytes=").and_then(|range| range.split_once('-'))
        {
            request.range = Some((start.parse().unwrap(), end.parse().ok()));
        }
    }
    // Noted before it is answered: whoever has the answer finds it noted.
    requests.try_send(request.path.clone()).unwrap();
    let answer = answer(&request);
    write!(stream, "HTTP/1.1 {} Status\r\nconnection: close\r\n", answer.status)?;
    write!(stream, "content-length: {}\r\n", answer.body.len())?;
    for (name, value) in &answer.headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    write!(stream, "\r\n")?;
    if request.method != "HEAD" {
        let sent = answer.sent_bytes.unwrap_or(answer.body.len()).min(answer.body.len());
        stream.write_all(&answer.body[..sent])?;
    }
    Ok(())
}

pub(super) fn etag(file: &str) -> String {
    format!("etag-of-{}", file.replace(['.', '/'], "-"))
}

/// What the real hub answers.
pub(super) fn answer(request: &Request, files: &BTreeMap<&'static str, Vec<u8>>) -> Answer {
    let failed = |status| Answer { status, ..Answer::ok("") };
    if request.token.as_deref() != Some("secret") {
        return failed(401);
    }
    if request.path == "/api/models/org/tiny/revision/main" {
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        return Answer::ok(serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string());
    }
    let prefix = format!("/org/tiny/resolve/{COMMIT}/");
    let Some((name, file)) = request.path.strip_prefix(&prefix).and_then(|name| files.get_key_value(name))
    else {
        return failed(404);
    };
    let answer = match request.range {
        Some((start, end)) => {
            let end = end.map_or(file.len(), |last| (last + 1).min(file.len()));
            let range = format!("bytes {start}-{}/{}", end - 1, file.len());
            Answer { status: 206, ..Answer::ok(&file[start..end]) }.with("content-range", &range)
        }
        None => Answer::ok(file.clone()),
    };
    answer.with("etag", &format!("\"{}\"", etag(name))).with("x-repo-commit", COMMIT)
}
