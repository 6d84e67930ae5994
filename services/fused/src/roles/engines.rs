use std::collections::BTreeMap;
use std::net::SocketAddr;

use fused_lifecycle::Lifecycle;
use fused_tokenizer::EngineEndpoint;
use fused_transport::{ChannelError, replicas};
use futures_util::future::select_all;
use tokio::sync::watch;
use tonic::transport::Endpoint;

/// The engines behind some URLs, one for each address that their names have at the moment.
///
/// # Errors
/// A URL does not parse.
pub(crate) fn follow(
    urls: &[String],
    lifecycle: &Lifecycle,
) -> Result<watch::Receiver<Vec<EngineEndpoint>>, ChannelError> {
    let mut sources =
        urls.iter().map(|url| replicas(url, lifecycle)).collect::<Result<Vec<_>, ChannelError>>()?;
    let (sender, receiver) = watch::channel(Vec::new());
    let stopped = lifecycle.stopped();
    lifecycle.spawn("engine addresses", async move {
        tokio::pin!(stopped);
        let mut known = BTreeMap::new();
        loop {
            let current: BTreeMap<SocketAddr, Endpoint> =
                sources.iter_mut().flat_map(|source| source.borrow_and_update().clone()).collect();
            // A channel that stays is kept, and with it its connection.
            known.retain(|address, _| current.contains_key(address));
            for (address, endpoint) in &current {
                known.entry(*address).or_insert_with(|| EngineEndpoint {
                    name: address.to_string(),
                    channel: endpoint.connect_lazy(),
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
