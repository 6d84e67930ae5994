use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use fused_lifecycle::Lifecycle;
use futures_util::future::select_all;
use tokio::sync::watch;
use tonic::transport::Endpoint;

use crate::Channel;
use crate::channel::{ChannelError, endpoint};

/// How often a name is resolved again. Nothing tells a client that a headless service has a new pod.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(3);

/// One of several services that are alike.
#[derive(Clone, Debug)]
pub struct Replica {
    /// What logs call it.
    pub name: String,
    /// The way to it.
    pub channel: Channel,
}

type Addresses = BTreeMap<SocketAddr, Endpoint>;

/// The services behind some URLs, one for each address that their names have at the moment; with the name of a headless
/// service those are its pods, and they may come and go. None until a name is resolved for the first time; a name that
/// cannot be resolved for the moment keeps its last addresses.
///
/// # Errors
/// A URL does not parse.
pub fn follow(urls: &[String], lifecycle: &Lifecycle) -> Result<watch::Receiver<Vec<Replica>>, ChannelError> {
    let mut sources =
        urls.iter().map(|url| addresses(url, lifecycle)).collect::<Result<Vec<_>, ChannelError>>()?;
    let (sender, receiver) = watch::channel(Vec::new());
    let stopped = lifecycle.stopped();
    lifecycle.spawn("replicas", async move {
        tokio::pin!(stopped);
        let mut known = BTreeMap::new();
        while !sources.is_empty() {
            let current: Addresses =
                sources.iter_mut().flat_map(|source| source.borrow_and_update().clone()).collect();
            // A channel that stays is kept, and with it its connection.
            known.retain(|address, _| current.contains_key(address));
            for (address, endpoint) in &current {
                known.entry(*address).or_insert_with(|| Replica {
                    name: address.to_string(),
                    channel: Channel::network(endpoint),
                });
            }
            sender.send_replace(known.values().cloned().collect());
            let changed = select_all(sources.iter_mut().map(|source| Box::pin(source.changed())));
            tokio::select! {
                (result, ..) = changed => if result.is_err() { return },
                () = &mut stopped => return,
            }
        }
    });
    Ok(receiver)
}

/// The addresses behind one name, followed until the process stops.
fn addresses(url: &str, lifecycle: &Lifecycle) -> Result<watch::Receiver<Addresses>, ChannelError> {
    let name = endpoint(url)?;
    let uri = name.uri().clone();
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().ok_or_else(|| ChannelError::no_port(url))?;
    let (sender, receiver) = watch::channel(BTreeMap::new());
    let stopped = lifecycle.stopped();
    lifecycle.spawn("resolve replicas", async move {
        tokio::pin!(stopped);
        let mut ticks = tokio::time::interval(RESOLVE_INTERVAL);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = &mut stopped => return,
                // Nobody listens any more.
                () = sender.closed() => return,
            }
            let resolved = tokio::select! {
                resolved = tokio::net::lookup_host((host.as_str(), port)) => resolved,
                () = &mut stopped => return,
            };
            match resolved {
                Ok(addresses) => publish(&sender, addresses),
                Err(error) => tracing::debug!(%host, %error, "the name cannot be resolved"),
            }
        }
    });
    Ok(receiver)
}

fn publish(sender: &watch::Sender<Addresses>, addresses: impl Iterator<Item = SocketAddr>) {
    let endpoints: Addresses = addresses
        .filter_map(|address| Some((address, endpoint(&format!("http://{address}")).ok()?)))
        .collect();
    sender.send_if_modified(|known| {
        let is_new = !known.keys().eq(endpoints.keys());
        if is_new {
            tracing::info!(addresses = ?endpoints.keys().collect::<Vec<_>>(), "replicas have changed");
            *known = endpoints;
        }
        is_new
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_becomes_its_addresses() {
        let lifecycle = Lifecycle::new();
        let urls = ["http://localhost:7".to_owned(), "http://127.0.0.1:8".to_owned()];
        let mut replicas = follow(&urls, &lifecycle).unwrap();
        let has = |list: &[Replica], port: &str| list.iter().any(|replica| replica.name.ends_with(port));
        let both = |list: &Vec<Replica>| has(list, ":7") && has(list, ":8");
        replicas.wait_for(both).await.unwrap();
        lifecycle.shut_down(Duration::ZERO, Duration::from_secs(1)).await.unwrap();
    }

    #[tokio::test]
    async fn addresses_that_are_none_are_refused() {
        let lifecycle = Lifecycle::new();
        for url in ["", "localhost", "http://localhost", "not a url:5"] {
            assert!(follow(&[url.to_owned()], &lifecycle).is_err(), "{url:?}");
        }
    }
}
