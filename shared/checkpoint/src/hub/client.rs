use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::cache::is_commit;
use super::error::HubError;
use super::id::{HubId, is_plain};

type Result<T> = std::result::Result<T, HubError>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the hub may send nothing at all.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// From the hub over a renamed model to where the bytes lie.
const MAX_REDIRECTS: usize = 5;
/// A model's list of files.
const MAX_LIST_BYTES: u64 = 64 << 20;
/// Git and SHA-256 hashes are shorter.
const MAX_ETAG_BYTES: usize = 128;

/// Asks a hub. The token goes to the hub's own address and to no other, wherever the hub sends us.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// What a hub has of a model.
#[derive(Deserialize)]
pub(super) struct Listing {
    #[serde(rename = "sha")]
    pub(super) commit: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    #[serde(rename = "rfilename")]
    name: String,
}

/// What a hub says about one file.
pub(super) struct Metadata {
    /// A word that is safe in a path.
    pub(super) etag: String,
    pub(super) num_bytes: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    /// Only where the hub itself goes on: what lies elsewhere has another etag.
    OwnHost,
    Anywhere,
}

impl Listing {
    pub(super) fn names(&self) -> Vec<String> {
        self.siblings.iter().map(|sibling| sibling.name.clone()).collect()
    }

    pub(super) fn has(&self, file: &str) -> bool {
        self.siblings.iter().any(|sibling| sibling.name == file)
    }

    /// The paths of a folder's files whose names end so.
    pub(super) fn in_folder(&self, folder: &str, end: &str) -> impl Iterator<Item = &str> {
        let names = self.siblings.iter().map(|sibling| sibling.name.as_str());
        names.filter(move |name| {
            let file = name.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
            file.is_some_and(|file| file.ends_with(end))
        })
    }
}

impl Client {
    pub(super) fn new(endpoint: &str, token: Option<String>) -> Self {
        let config = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(root_certs()).build())
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .http_status_as_error(false)
            // Followed here, where it is known who may have the token.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("fused/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.new_agent(), endpoint: endpoint.trim_end_matches('/').to_owned(), token }
    }

    /// The commit that a revision is, and its files.
    pub(super) fn listing(&self, id: &HubId) -> Result<Listing> {
        let revision = id.revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}", self.endpoint, id.repo);
        let (url, mut answer) = self.ask("GET", &url, None, Follow::Anywhere)?;
        let body = answer.body_mut().with_config().limit(MAX_LIST_BYTES).read_to_vec();
        let body = body.map_err(|source| unreachable(&url, source))?;
        let listing: Listing = serde_json::from_slice(&body)
            .map_err(|error| HubError::answer(&url, format!("no list of files: {error}")))?;
        if !is_commit(&listing.commit) {
            let commit = listing.commit.escape_default();
            return Err(HubError::answer(&url, format!("`{commit}` is no commit")));
        }
        Ok(listing)
    }

    pub(super) fn file_url(&self, id: &HubId, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.endpoint, id.repo)
    }

    pub(super) fn metadata(&self, url: &str) -> Result<Metadata> {
        let (url, answer) = self.ask("HEAD", url, None, Follow::OwnHost)?;
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        // A large file lies elsewhere; the hub says itself what it is.
        let etag = header("x-linked-etag").or_else(|| header("etag"));
        let Some(etag) = etag else { return Err(HubError::answer(&url, "no etag")) };
        let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
        if !is_plain(etag, MAX_ETAG_BYTES) {
            let problem = format!("the etag `{}`, which would be a file's name", etag.escape_default());
            return Err(HubError::answer(&url, problem));
        }
        let is_elsewhere = answer.status().is_redirection();
        let length = header("x-linked-size").or_else(|| header("content-length").filter(|_| !is_elsewhere));
        Ok(Metadata { etag: etag.to_owned(), num_bytes: length.and_then(|length| length.parse().ok()) })
    }

    /// A file's bytes from `start` on, or all of them where the hub prefers that: the status tells.
    pub(super) fn bytes(&self, url: &str, start: u64) -> Result<Response<Body>> {
        let range = (start > 0).then(|| format!("bytes={start}-"));
        self.ask("GET", url, range.as_deref(), Follow::Anywhere).map(|(_, answer)| answer)
    }

    fn ask(
        &self,
        method: &str,
        url: &str,
        range: Option<&str>,
        follow: Follow,
    ) -> Result<(String, Response<Body>)> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let is_own = has_same_origin(&url, &self.endpoint);
            let mut request = ureq::http::Request::builder().method(method).uri(&url);
            if let Some(range) = range {
                request = request.header("range", range);
            }
            if let Some(token) = self.token.as_deref().filter(|_| is_own) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let request = request.body(()).map_err(|error| unreachable(&url, error.into()))?;
            let answer = self.agent.run(request).map_err(|source| unreachable(&url, source))?;
            let status = answer.status();
            if status.is_redirection() {
                let next = location(&url, answer.headers())?;
                if follow == Follow::OwnHost && !has_same_origin(&next, &self.endpoint) {
                    return Ok((url, answer));
                }
                url = next;
            } else if status.is_success() || (status.as_u16() == 416 && range.is_some()) {
                return Ok((url, answer));
            } else {
                return Err(HubError::Refused { url, status: status.as_u16() });
            }
        }
        Err(HubError::answer(&url, "too many redirects"))
    }
}

/// The certificates of SSL_CERT_FILE and SSL_CERT_DIR, else of the system; Mozilla's where there are none.
fn root_certs() -> RootCerts {
    let native = rustls_native_certs::load_native_certs();
    for error in native.errors {
        tracing::warn!(%error, "a certificate of the system cannot be read");
    }
    if native.certs.is_empty() {
        return RootCerts::WebPki;
    }
    let certs = native.certs.iter().map(|cert| Certificate::from_der(cert).to_owned());
    RootCerts::Specific(Arc::new(certs.collect()))
}

/// Where a redirect leads. From https it leads to https.
fn location(from: &str, headers: &HeaderMap) -> Result<String> {
    let wrong = |problem: &str| HubError::answer(from, problem);
    let to = headers.get("location").and_then(|to| to.to_str().ok());
    let to = to.ok_or_else(|| wrong("a redirect to nowhere"))?;
    let base: Uri = from.parse().map_err(|_| wrong("a redirect from no address"))?;
    let url = match (to.starts_with('/') && !to.starts_with("//"), base.scheme_str(), base.authority()) {
        (true, Some(scheme), Some(authority)) => format!("{scheme}://{authority}{to}"),
        _ => to.to_owned(),
    };
    let scheme = url.parse::<Uri>().ok().and_then(|uri| uri.scheme_str().map(str::to_owned));
    match (base.scheme_str(), scheme.as_deref()) {
        (_, Some("https")) | (Some("http"), Some("http")) => Ok(url),
        (Some("https"), Some("http")) => Err(wrong("a redirect from https to http")),
        _ => Err(wrong("a redirect to no address")),
    }
}

fn has_same_origin(one: &str, other: &str) -> bool {
    let origin = |url: &str| {
        let uri: Uri = url.parse().ok()?;
        let scheme = uri.scheme_str()?.to_owned();
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        Some((scheme, uri.host()?.to_ascii_lowercase(), port))
    };
    origin(one).is_some_and(|one| Some(one) == origin(other))
}

fn unreachable(url: &str, source: ureq::Error) -> HubError {
    HubError::Unreachable { url: url.to_owned(), source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let hub = "https://hub.example";
        for same in ["https://hub.example/x", "https://HUB.example:443/y"] {
            assert!(has_same_origin(same, hub), "{same}");
        }
        for other in [
            "http://hub.example/",
            "https://hub.example:8443/",
            "https://hub.example.org/",
            "https://x.hub.example/",
            "https://evil/https://hub.example",
            "https://user@evil/",
            "/x",
        ] {
            assert!(!has_same_origin(other, hub), "{other}");
        }
    }

    #[test]
    fn a_redirect_leads_to_an_address_and_not_out_of_encryption() {
        let led = |from: &str, to: &str| {
            let headers = HeaderMap::from_iter([("location".parse().unwrap(), to.parse().unwrap())]);
            location(from, &headers).map_err(|error| error.to_string())
        };
        assert_eq!(led("https://a/b", "/c").unwrap(), "https://a/c");
        assert_eq!(led("http://a:1/b", "https://d/e?f").unwrap(), "https://d/e?f");
        for to in ["http://a/c", "//evil/x", "file:///etc/passwd", "c", "ftp://x/"] {
            assert!(led("https://a/b", to).is_err(), "{to}");
        }
    }
}
