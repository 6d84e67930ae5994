use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::Metrics;

/// How long a server may take to say where it listens, to come to rest, or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is zero where nobody is served.
const IDLE_AT_ZERO: [&str; 6] = [
    "fused_gateway_requests_in_flight",
    "fused_engine_running_sequences",
    "fused_engine_waiting_sequences",
    "fused_engine_slots_in_use",
    "fused_engine_kv_bytes{state=\"mapped\"}",
    "fused_engine_kv_unused_bytes",
];

/// A running `fused` process; killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// `http://HOST:PORT` of what it serves, in the order printed.
    pub urls: Vec<String>,
    /// Talks to it.
    pub http: reqwest::Client,
    stderr: Option<Receiver<String>>,
}

/// A process that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it logged.
    pub stderr: String,
}

/// Runs a command of the binary to its end.
///
/// # Errors
/// It cannot be started, or did not end in a minute.
pub fn run_to_end(
    binary: &Path,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> anyhow::Result<Finished> {
    let mut child = command(binary, arguments, environment).spawn()?;
    let stdout = read_all(child.stdout.take());
    let stderr = read_all(child.stderr.take());
    let status = wait(&mut child)?;
    Ok(Finished { status, stdout: stdout.recv_timeout(PATIENCE)?, stderr: stderr.recv_timeout(PATIENCE)? })
}

impl Server {
    /// Starts a service and waits until it listens: it prints one line `listening on URL` for each address.
    ///
    /// # Errors
    /// It ended instead; the message has its log.
    pub fn start(binary: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut child = command(binary, arguments, environment).spawn()?;
        let stderr = read_all(child.stderr.take());
        let stdout = child.stdout.take().context("no standard output")?;
        let mut urls = Vec::new();
        let mut lines = BufReader::new(stdout).lines();
        // The banner ends with an empty line, or with the process.
        for line in lines.by_ref() {
            let line = line?;
            if let Some(url) = line.strip_prefix("listening on ") {
                urls.push(url.split(' ').next().unwrap_or(url).to_owned());
            }
            if line.is_empty() {
                break;
            }
        }
        if urls.is_empty() {
            wait(&mut child)?;
            bail!("the server did not start: {}", stderr.recv_timeout(PATIENCE)?);
        }
        // Keeps the pipe open, so that the server can go on printing.
        let _drain = std::thread::spawn(move || lines.count());
        let http = reqwest::Client::builder().timeout(Duration::from_secs(120)).build()?;
        Ok(Self { child, urls, http, stderr: Some(stderr) })
    }

    /// The process's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The address of a route.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.urls[0])
    }

    /// `POST`s JSON; the status and the body.
    ///
    /// # Errors
    /// No answer, or one that is no JSON.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<(u16, Value)> {
        let answer = self.http.post(self.url(path)).json(body).send().await?;
        let status = answer.status().as_u16();
        Ok((status, answer.json().await?))
    }

    /// The answer to a request for completions.
    ///
    /// # Errors
    /// None came, or a refusal.
    pub async fn complete(&self, request: &Value) -> anyhow::Result<Value> {
        match self.post("/v1/completions", request).await? {
            (200, answer) => Ok(answer),
            (status, answer) => bail!("{status}: {answer}"),
        }
    }

    /// `GET`s text; the status and the body.
    ///
    /// # Errors
    /// No answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let answer = self.http.get(self.url(path)).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// What the server counts, all at the same moment.
    ///
    /// # Errors
    /// No answer.
    pub async fn metrics(&self) -> anyhow::Result<Metrics> {
        Ok(Metrics::new(self.get("/metrics").await?.1))
    }

    /// The sum of a metric over its labels; 0 where it was never recorded.
    ///
    /// # Errors
    /// No answer.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        Ok(self.metrics().await?.get(name))
    }

    /// Waits until a metric has a value.
    ///
    /// # Errors
    /// It had not within a minute.
    pub async fn wait_for_metric(&self, name: &str, value: f64) -> anyhow::Result<()> {
        self.wait_until(|metrics| (metrics.get(name) - value).abs() < f64::EPSILON)
            .await
            .with_context(|| format!("{name} should be {value}"))
            .map(|_| ())
    }

    /// Waits until the metrics say so, and returns them as they then were.
    ///
    /// # Errors
    /// They did not within a minute.
    pub async fn wait_until(&self, is_so: impl Fn(&Metrics) -> bool) -> anyhow::Result<Metrics> {
        let started = Instant::now();
        loop {
            let metrics = self.metrics().await?;
            if is_so(&metrics) {
                return Ok(metrics);
            }
            if started.elapsed() > PATIENCE {
                bail!("not so within {PATIENCE:?}: {metrics}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until nothing runs, nothing waits, and no request needs any memory.
    ///
    /// # Errors
    /// Something still was there after a minute, or bytes are lost.
    pub async fn wait_until_idle(&self) -> anyhow::Result<()> {
        let metrics =
            self.wait_until(|metrics| IDLE_AT_ZERO.iter().all(|name| metrics.get(name) == 0.0)).await?;
        let bytes = |state: &str| metrics.get(&format!("fused_engine_kv_bytes{{state=\"{state}\"}}"));
        if bytes("parked") + bytes("free") != bytes("total") {
            bail!("KV memory is lost: {metrics}");
        }
        Ok(())
    }

    /// The most memory that the process has had at once, as the system counts it.
    ///
    /// # Errors
    /// It has ended.
    pub fn peak_memory_bytes(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        Ok(peak.context("no VmHWM")?.trim().parse::<u64>()? * 1024)
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// It has ended already.
    pub fn terminate(&self) -> anyhow::Result<()> {
        Ok(kill_process(self.pid()?, Signal::TERM)?)
    }

    /// Stops the process where it stands: it hangs, with all its connections open.
    ///
    /// # Errors
    /// It has ended already.
    pub fn freeze(&self) -> anyhow::Result<()> {
        Ok(kill_process(self.pid()?, Signal::STOP)?)
    }

    /// Lets a frozen process go on.
    ///
    /// # Errors
    /// It has ended already.
    pub fn thaw(&self) -> anyhow::Result<()> {
        Ok(kill_process(self.pid()?, Signal::CONT)?)
    }

    /// Physical memory of the process.
    ///
    /// # Errors
    /// It has ended already.
    pub fn resident_bytes(&self) -> anyhow::Result<usize> {
        let pages = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id()))?;
        let resident = pages.split(' ').nth(1).context("no resident pages")?;
        Ok(resident.parse::<usize>()? * rustix::param::page_size())
    }

    fn pid(&self) -> anyhow::Result<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// It did not end in a minute.
    pub fn wait(mut self) -> anyhow::Result<(ExitStatus, String)> {
        let status = wait(&mut self.child)?;
        let stderr = self.stderr.take().context("waited twice")?;
        Ok((status, stderr.recv_timeout(PATIENCE)?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(binary: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(binary);
    // What the developer's shell sets must not change a test.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FUSED_") {
            command.env_remove(name);
        }
    }
    command
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn read_all(pipe: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = sync_channel(1);
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read up to an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

#[expect(clippy::disallowed_methods, reason = "the standard library offers no wait with a time-out")]
fn wait(child: &mut Child) -> anyhow::Result<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if started.elapsed() > PATIENCE {
            child.kill()?;
            bail!("the process did not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
