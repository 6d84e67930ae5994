//! Asks a service whether it is ready: for container tests and scripts that have no other client.

use anyhow::{Context, bail};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::cli::Probe;

pub(crate) fn run(probe: &Probe) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let answer = tokio::time::timeout(probe.timeout, ask(&probe.url));
        answer.await.with_context(|| format!("{} did not answer within {:?}", probe.url, probe.timeout))?
    })
}

async fn ask(url: &str) -> anyhow::Result<()> {
    if let Some(address) = url.strip_prefix("grpc://") {
        let (address, service) = address.split_once('/').unwrap_or((address, ""));
        let channel = fused_transport::connect(&format!("http://{address}"))?;
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = HealthClient::new(channel).check(request).await;
        let status = answer.with_context(|| format!("no answer from {url}"))?.into_inner().status();
        if status != ServingStatus::Serving {
            bail!("{url} is {}", status.as_str_name());
        }
    } else if let Some(address) = url.strip_prefix("http://") {
        // Without a path, what a service says of itself.
        let url = if address.trim_end_matches('/').contains('/') {
            url.to_owned()
        } else {
            format!("{}/ready", url.trim_end_matches('/'))
        };
        let answer = reqwest::get(&url).await.with_context(|| format!("no answer from {url}"))?;
        let status = answer.status();
        if !status.is_success() {
            bail!("{url} answered {status}: {}", answer.text().await.unwrap_or_default());
        }
    } else {
        bail!("`{url}` is neither http://HOST:PORT[/PATH] nor grpc://HOST:PORT/SERVICE");
    }
    Ok(())
}
