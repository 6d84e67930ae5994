use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use fused_lifecycle::Lifecycle;
use tokio::sync::{mpsc, watch};
use tonic::transport::channel::Change;
use tonic::transport::{Channel, Endpoint};

use crate::channel::{ChannelError, endpoint};

/// How often a name is resolved again. Nothing tells a client that a headless service has a new pod.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(3);
/// Changes on their way into a balanced channel.
const MAX_CHANGES: usize = 64;

/// One channel to all addresses behind a name, each new call to any of them. With the name of a headless service those
/// are its pods, and they may come and go.
///
/// # Errors
/// `url` does not parse.
pub fn connect_balanced(url: &str, lifecycle: &Lifecycle) -> Result<Channel, ChannelError> {
    let mut replicas = replicas(url, lifecycle)?;
    let (channel, changes) = Channel::balance_channel(MAX_CHANGES);
    lifecycle.spawn("balanced channel", async move {
        let mut known = BTreeMap::new();
        loop {
            let current = replicas.borrow_and_update().clone();
            if send_changes(&known, &current, &changes).await.is_err() {
                return;
            }
            known = current;
            // An error: nobody resolves any more, because the process stops.
            if replicas.changed().await.is_err() {
                return;
            }
        }
    });
    Ok(channel)
}

/// The addresses behind a name, followed until the process stops; empty until it is resolved for the first time. A name
/// that cannot be resolved for the moment keeps its last addresses.
///
/// # Errors
/// `url` does not parse.
pub fn replicas(
    url: &str,
    lifecycle: &Lifecycle,
) -> Result<watch::Receiver<BTreeMap<SocketAddr, Endpoint>>, ChannelError> {
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

fn publish(
    sender: &watch::Sender<BTreeMap<SocketAddr, Endpoint>>,
    addresses: impl Iterator<Item = SocketAddr>,
) {
    let endpoints: BTreeMap<SocketAddr, Endpoint> = addresses
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

async fn send_changes(
    known: &BTreeMap<SocketAddr, Endpoint>,
    current: &BTreeMap<SocketAddr, Endpoint>,
    changes: &mpsc::Sender<Change<SocketAddr, Endpoint>>,
) -> Result<(), mpsc::error::SendError<Change<SocketAddr, Endpoint>>> {
    for address in known.keys().filter(|address| !current.contains_key(address)) {
        changes.send(Change::Remove(*address)).await?;
    }
    for (address, endpoint) in current.iter().filter(|(address, _)| !known.contains_key(address)) {
        changes.send(Change::Insert(*address, endpoint.clone())).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_becomes_its_addresses() {
        let lifecycle = Lifecycle::new();
        let mut replicas = replicas("http://localhost:7", &lifecycle).unwrap();
        replicas.wait_for(|replicas| !replicas.is_empty()).await.unwrap();
        assert!(replicas.borrow().keys().all(|address| address.ip().is_loopback() && address.port() == 7));
        lifecycle.shut_down(Duration::ZERO, Duration::from_secs(1)).await.unwrap();
    }

    #[tokio::test]
    async fn addresses_that_are_none_are_refused() {
        let lifecycle = Lifecycle::new();
        for url in ["", "localhost", "http://localhost", "not a url:5"] {
            assert!(connect_balanced(url, &lifecycle).is_err(), "{url:?}");
        }
    }

    #[tokio::test]
    async fn what_came_and_went_is_told() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let set = |ports: &[u16]| -> BTreeMap<_, _> {
            ports.iter().map(|&port| (address(port), Endpoint::from_static("http://x"))).collect()
        };
        let (sender, mut receiver) = mpsc::channel(8);
        send_changes(&set(&[1, 2]), &set(&[2, 3]), &sender).await.unwrap();
        assert!(matches!(receiver.try_recv(), Ok(Change::Remove(gone)) if gone == address(1)));
        assert!(matches!(receiver.try_recv(), Ok(Change::Insert(new, _)) if new == address(3)));
        assert!(receiver.try_recv().is_err());
    }
}
