use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use tempfile::TempDir;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub of one model, `org/tiny`, that answers as the real one does, and says which paths were asked for.
fn serve(files: BTreeMap<&'static str, Vec<u8>>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (requests, seen) = sync_channel(100);
    thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that hangs up early is its own test's matter.
            let _ = answer(&stream.unwrap(), &files, &requests);
        }
    });
    (endpoint, seen)
}

fn answer(
    mut stream: &TcpStream,
    files: &BTreeMap<&'static str, Vec<u8>>,
    requests: &SyncSender<String>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut range = None;
    let mut authorized = false;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        authorized |= line == "authorization: bearer secret";
        range = line.strip_prefix("range: bytes=").map(str::to_owned).or(range);
    }
    let prefix = format!("/org/tiny/resolve/{COMMIT}/");
    let file = path.strip_prefix(&prefix).and_then(|name| files.get(name));
    // Noted before it is answered: whoever has the answer finds it noted.
    requests.try_send(path.clone()).unwrap();
    if !authorized {
        write!(stream, "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    } else if path == "/api/models/org/tiny/revision/main" {
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        let length = body.len();
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")?;
    } else if let (Some(file), Some(range)) = (file, range) {
        let (start, end) = range.split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        let end = end.parse::<usize>().map_or(file.len(), |last| (last + 1).min(file.len()));
        let part = &file[start..end];
        let name = path.replace(['/', '.'], "-");
        write!(stream, "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\n", part.len())?;
        write!(stream, "content-range: bytes {start}-{}/{}\r\n", end - 1, file.len())?;
        write!(stream, "etag: \"{name}\"\r\nx-repo-commit: {COMMIT}\r\nconnection: close\r\n\r\n")?;
        stream.write_all(part)?;
    } else {
        write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    }
    Ok(())
}

fn hub(endpoint: &str, cache: &TempDir) -> Hub {
    Hub {
        endpoint: endpoint.to_owned(),
        cache_dir: cache.path().to_owned(),
        token: Some("secret".to_owned()),
        offline: false,
    }
}

fn sharded_model() -> BTreeMap<&'static str, Vec<u8>> {
    let index = r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    BTreeMap::from([
        ("README.md", b"not for us".to_vec()),
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        (INDEX_FILE, index.into()),
        ("1.safetensors", vec![1; 100_000]),
        ("2.safetensors", vec![2; 10]),
        ("consolidated.safetensors", vec![3; 10]),
    ])
}

#[test]
fn a_model_is_downloaded_once_and_found_without_the_hub() {
    let cache = TempDir::new().unwrap();
    let (endpoint, seen) = serve(sharded_model());
    let files = hub(&endpoint, &cache).download("org/tiny", Wanted::Everything).unwrap();
    assert_eq!(files.name(), "org/tiny");
    assert_eq!(files.read("1.safetensors").unwrap().unwrap()[..], [1; 100_000]);
    assert_eq!(files.read("2.safetensors").unwrap().unwrap()[..], [2; 10]);
    assert!(files.read("tokenizer.json").unwrap().is_some());
    for unwanted in ["README.md", "consolidated.safetensors"] {
        assert!(files.read(unwanted).unwrap().is_none(), "{unwanted}");
    }
    assert!(seen.try_iter().count() > 5);

    hub(&endpoint, &cache).download("org/tiny", Wanted::Everything).unwrap();
    assert_eq!(seen.recv().unwrap(), "/api/models/org/tiny/revision/main");
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), [""; 0]);

    let offline = Hub { offline: true, ..hub(&endpoint, &cache) };
    assert!(offline.download("org/tiny", Wanted::Everything).unwrap().read("config.json").unwrap().is_some());
    assert!(offline.download(&format!("org/tiny@{COMMIT}"), Wanted::Everything).is_ok());
    assert!(matches!(offline.download("org/other", Wanted::Everything), Err(Error::Offline { .. })));
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), [""; 0]);

    // Nobody listens on the port of a listener that is gone.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unreachable = format!("http://{gone}");
    assert!(hub(&unreachable, &cache).download("org/tiny", Wanted::Everything).is_ok());
    let error = hub(&unreachable, &cache).download("org/other", Wanted::Everything).unwrap_err();
    assert!(
        error.to_string().contains("`org/other`: not a directory here, and its list of files"),
        "{error}"
    );
}

#[test]
fn what_the_hub_refuses_is_said() {
    let cache = TempDir::new().unwrap();
    let (endpoint, _seen) = serve(sharded_model());
    let refused = |hub: &Hub, model: &str| {
        let error = hub.download(model, Wanted::Everything).unwrap_err();
        format!("{error}: {}", std::error::Error::source(&error).unwrap())
    };
    let anonymous = Hub { token: None, ..hub(&endpoint, &cache) };
    assert!(refused(&anonymous, "org/tiny").contains("401"));
    assert!(refused(&hub(&endpoint, &cache), "org/other").contains("404"));
    assert!(refused(&hub(&endpoint, &cache), "org/tiny@v2").contains("404"));
}

#[test]
fn a_model_whose_weights_are_not_safetensors_or_whose_index_leads_away_is_refused() {
    let mut files = sharded_model();
    files.remove(INDEX_FILE);
    let cache = TempDir::new().unwrap();
    let (endpoint, _seen) = serve(files.clone());
    let error = hub(&endpoint, &cache).download("org/tiny", Wanted::Everything).unwrap_err();
    assert!(matches!(error, Error::MissingFile { .. }), "{error}");

    files.insert(INDEX_FILE, br#"{"weight_map":{"a":"../../../1.safetensors"}}"#.to_vec());
    let cache = TempDir::new().unwrap();
    let (endpoint, _seen) = serve(files);
    let error = hub(&endpoint, &cache).download("org/tiny", Wanted::Everything).unwrap_err();
    assert!(matches!(error, Error::FileName { .. }), "{error}");
}

#[test]
fn only_well_formed_ids_reach_the_hub() {
    for model in ["org/name", "org-1/na.me_2", "org/name@v1.0", "org/name@refs/pr/3"] {
        assert!(HubId::parse(model).is_ok(), "{model}");
    }
    let long = format!("org/{}", "x".repeat(97));
    for model in [
        "",
        "name",
        "org/",
        "/name",
        "org/name/x",
        "./name",
        "../name",
        "org/..",
        "org/na me",
        "org/name@",
        "org/name@../x",
        "org/name@a//b",
        "org/ñame",
        "org/name?x=1",
        "org/name\n",
        "@",
        "org/name@v1@v2",
        &long,
    ] {
        assert!(matches!(HubId::parse(model), Err(Error::NotAModel { .. })), "{model}");
    }
}
