use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use server::{Answer, COMMIT, Request, serve, serve_with};

mod server;

fn hub(endpoint: &str, cache: &TempDir) -> Hub {
    Hub {
        endpoint: endpoint.to_owned(),
        cache_dir: cache.path().join("hub"),
        token: Some("secret".to_owned()),
        offline: false,
        lock_patience: Duration::from_millis(300),
    }
}

fn sharded_model() -> BTreeMap<&'static str, Vec<u8>> {
    let index = r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    BTreeMap::from([
        ("README.md", b"not for us".to_vec()),
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("additional_chat_templates/rag.jinja", b"rag".to_vec()),
        ("additional_chat_templates/README.md", b"not for us".to_vec()),
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
    let templates = files.read_folder(TEMPLATE_FOLDER, "jinja").unwrap();
    let templates: Vec<_> = templates.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    assert_eq!(templates, [("rag", b"rag".as_slice())]);
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
fn a_shard_that_only_the_index_knows_is_no_obstacle() {
    let mut files = sharded_model();
    files.remove("2.safetensors");
    let cache = TempDir::new().unwrap();
    let (endpoint, _seen) = serve(files);
    let files = hub(&endpoint, &cache).download("org/tiny", Wanted::Everything).unwrap();
    assert!(files.read("1.safetensors").unwrap().is_some() && files.read("2.safetensors").unwrap().is_none());
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
    assert!(matches!(error, Error::Foreign { .. }), "{error}");

    files.insert(INDEX_FILE, br#"{"weight_map":{"a":"../../../1.safetensors"}}"#.to_vec());
    let cache = TempDir::new().unwrap();
    let (endpoint, _seen) = serve(files);
    let error = hub(&endpoint, &cache).download("org/tiny", Wanted::Everything).unwrap_err();
    assert!(matches!(error, Error::FileName { .. }), "{error}");
}

#[test]
fn only_well_formed_ids_reach_the_hub() {
    for model in ["org/name", "org-1/na.me_2", "org/name@v1.0", "org/name@refs/pr/3", "gpt2", "gpt2@main"] {
        assert!(HubId::parse(model).is_ok(), "{model}");
    }
    let long = format!("org/{}", "x".repeat(97));
    for model in [
        "",
        "/etc",
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

fn refusal(hub: &Hub) -> String {
    let error = hub.download("org/tiny", Wanted::Everything).unwrap_err();
    assert!(error.is_the_hubs(), "{error}");
    format!("{error}: {}", std::error::Error::source(&error).unwrap())
}

/// Every file under a folder, links included.
fn files_in(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() && !path.is_symlink() {
            true => found.extend(files_in(&path)),
            false => found.push(path.display().to_string()),
        }
    }
    found
}

#[test]
fn a_hub_cannot_name_files_outside_the_cache() {
    let outside = TempDir::new().unwrap();
    let absolute = format!("\"{}/owned\"", outside.path().display());
    for etag in [&*absolute, "\"../../../../owned\"", "\"..\"", "\".hidden\"", "\"\"", "a/b", "W/\"../x\""] {
        for header in ["etag", "x-linked-etag"] {
            let (etag, model) = (etag.to_owned(), sharded_model());
            let (endpoint, _seen) = serve_with(move |request| {
                let mut answer = server::answer(request, &model);
                if request.path.contains("/resolve/") {
                    answer.headers.insert(header.to_owned(), etag.clone());
                }
                answer
            });
            let cache = TempDir::new().unwrap();
            assert!(refusal(&hub(&endpoint, &cache)).contains("the etag"), "{header}");
            assert_eq!(files_in(cache.path()), [""; 0]);
            assert_eq!(files_in(outside.path()), [""; 0]);
        }
    }
    for commit in
        ["../../../x", "/tmp/x", "main", "", &COMMIT[..39], &COMMIT.to_uppercase().replace('0', "A")]
    {
        let listing =
            serde_json::json!({ "sha": commit, "siblings": [{ "rfilename": "config.json" }] }).to_string();
        let (endpoint, _seen) = serve_with(move |_| Answer::ok(listing.clone()));
        let cache = TempDir::new().unwrap();
        assert!(refusal(&hub(&endpoint, &cache)).contains("is no commit"), "{commit}");
        assert_eq!(files_in(cache.path()), [""; 0]);
    }
}

#[test]
fn the_token_stays_with_the_hub() {
    let tokens = Arc::new(std::sync::Mutex::new(Vec::new()));
    let elsewhere_tokens = Arc::clone(&tokens);
    let (elsewhere, _seen) = serve_with(move |request| {
        elsewhere_tokens.lock().unwrap().push(request.token.clone());
        Answer::ok("{}")
    });
    let model = BTreeMap::from([("config.json", b"{}".to_vec())]);
    let (endpoint, _seen) = serve_with(move |request| {
        if request.path.contains("/resolve/") {
            let location = format!("{elsewhere}/blob");
            let answer = Answer { status: 302, ..Answer::ok("") };
            return answer
                .with("location", &location)
                .with("x-linked-etag", "\"e1\"")
                .with("x-linked-size", "2");
        }
        // A model that has another name now: the same host.
        if request.path.starts_with("/api/models/org/tiny/") {
            let location = "/api/models/new/tiny/revision/main";
            return Answer { status: 307, ..Answer::ok("") }.with("location", location);
        }
        let path = request.path.replace("/new/", "/org/");
        server::answer(&Request { path, ..request.clone() }, &model)
    });
    let cache = TempDir::new().unwrap();
    let files = hub(&endpoint, &cache).download("org/tiny", Wanted::NoWeights).unwrap();
    assert_eq!(files.read("config.json").unwrap().unwrap()[..], *b"{}");
    assert_eq!(*tokens.lock().unwrap(), [None]);
}

#[test]
fn redirects_end() {
    let (endpoint, seen) = serve_with(|request| {
        Answer { status: 302, ..Answer::ok("") }.with("location", &format!("{}x", request.path))
    });
    assert!(refusal(&hub(&endpoint, &TempDir::new().unwrap())).contains("too many redirects"));
    assert_eq!(seen.try_iter().count(), 6);
}

#[test]
fn a_transfer_that_breaks_off_goes_on_and_one_that_lies_does_not() {
    let model = sharded_model();
    let (endpoint, seen) = serve_with(move |request| {
        let mut answer = server::answer(request, &model);
        if request.path.ends_with("/1.safetensors") && request.method == "GET" {
            answer.sent_bytes = Some(30_000);
        }
        answer
    });
    let cache = TempDir::new().unwrap();
    let files = hub(&endpoint, &cache).download("org/tiny", Wanted::Everything).unwrap();
    assert_eq!(files.read("1.safetensors").unwrap().unwrap()[..], [1; 100_000]);
    // The head, and four parts.
    assert_eq!(seen.try_iter().filter(|path| path.ends_with("/1.safetensors")).count(), 5);
    assert!(files_in(cache.path()).iter().all(|file| !file.ends_with(".incomplete")));

    let model = sharded_model();
    let (endpoint, _seen) = serve_with(move |request| {
        let answer = server::answer(request, &model);
        let lies = request.path.ends_with("/config.json") && request.method == "HEAD";
        if lies { answer.with("x-linked-size", "1") } else { answer }
    });
    let refused = refusal(&hub(&endpoint, &TempDir::new().unwrap()));
    assert!(refused.contains("more bytes than it announced"), "{refused}");

    let model = sharded_model();
    let (endpoint, seen) = serve_with(move |request| {
        let mut answer = server::answer(request, &model);
        answer.sent_bytes = (request.method == "GET" && request.path.ends_with("/config.json")).then_some(0);
        answer
    });
    let refused = refusal(&hub(&endpoint, &TempDir::new().unwrap()));
    assert!(refused.contains("broke off 5 times"), "{refused}");
    assert_eq!(seen.try_iter().count(), 7);
}

#[test]
fn a_file_that_another_process_downloads_is_waited_for_and_used() {
    let cache = TempDir::new().unwrap();
    let (endpoint, seen) = serve(BTreeMap::from([("config.json", b"{}".to_vec())]));
    let id = HubId::parse("org/tiny").unwrap();
    let other = ModelCache::new(&cache.path().join("hub"), &id);
    let etag = server::etag("config.json");
    let lock = other.lock(&etag, Duration::ZERO).unwrap();

    // It does nothing: the wait has a bound.
    let refused = refusal(&hub(&endpoint, &cache));
    assert!(refused.contains("another process holds") && refused.contains(&etag), "{refused}");

    // It brings something every now and then, for longer than it may do nothing, and ends.
    let incomplete = other.incomplete(&etag);
    let working = std::thread::spawn(move || {
        let mut file = File::create(&incomplete).unwrap();
        for _ in 0..8 {
            std::io::Write::write_all(&mut file, b" ").unwrap();
            std::thread::park_timeout(Duration::from_millis(100));
        }
        fs::rename(&incomplete, incomplete.with_extension("")).unwrap();
        drop(lock);
    });
    let patient = Hub { lock_patience: Duration::from_secs(20), ..hub(&endpoint, &cache) };
    let files = patient.download("org/tiny", Wanted::NoWeights).unwrap();
    working.join().unwrap();
    assert_eq!(files.read("config.json").unwrap().unwrap()[..], *b"        ");
    // Listing and head, twice; the bytes came from the other one.
    assert_eq!(seen.try_iter().count(), 4);
}

#[test]
fn the_usual_variables_say_where_the_cache_is() {
    let found = |variables: &[(&str, &str)]| {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        let hub = Hub::from_variables(&|key| variables.get(key).map(|value| (*value).to_owned())).unwrap();
        hub.cache_dir.display().to_string()
    };
    assert_eq!(found(&[("HF_HOME", "/h")]), "/h/hub");
    assert_eq!(found(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]), "/c");
    assert_eq!(found(&[("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
    let home = TempDir::new().unwrap();
    fs::write(home.path().join("token"), " from-file\n").unwrap();
    let home = home.path().display().to_string();
    let token = |own: Option<&str>| {
        let set = |key: &str| match key {
            "HF_HOME" => Some(home.clone()),
            "HF_TOKEN" => own.map(str::to_owned),
            _ => None,
        };
        Hub::from_variables(&set).unwrap().token
    };
    assert_eq!(token(None).as_deref(), Some("from-file"));
    assert_eq!(token(Some("own")).as_deref(), Some("own"));
}
