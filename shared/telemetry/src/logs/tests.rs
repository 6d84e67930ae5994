use std::io::{self, Write};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tracing::{debug, error, error_span, info, info_span, warn};
use tracing_subscriber::layer::SubscriberExt;

use super::flood::Ration;
use super::*;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn written(format: LogFormat, directives: &str, work: impl FnOnce()) -> String {
    let lines = Lines::default();
    let writer = lines.clone();
    let layer = layer(format, EnvFilter::new(directives), move || writer.clone());
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
    lines.text()
}

#[test]
fn the_filter_concerns_lines_and_not_the_request_ids_in_them() {
    let work = || {
        let _span = info_span!("gateway.request", request_id = "id-1").entered();
        info!("not wanted");
        error!("wanted");
    };
    for directives in ["warn", "error", "info", "warn,fused_engine=debug"] {
        let text = written(LogFormat::Text, directives, work);
        assert!(text.contains("wanted") && text.contains("id-1"), "{directives}: {text}");
        assert_eq!(text.contains("not wanted"), directives == "info", "{directives}: {text}");
    }
    assert_eq!(written(LogFormat::Text, "off", work), "");
}

#[test]
fn debug_lines_of_libraries_are_written_where_they_are_named() {
    let work = || {
        debug!(target: "fused_engine::core", "ours");
        debug!(target: "h2::codec", "frame");
        info!(target: "h2::server", "said by h2");
    };
    for (directives, has_ours, has_frames, has_info) in [
        ("debug", true, false, true),
        ("trace", true, false, true),
        ("debug,h2=debug", true, true, true),
        ("info,h2::codec=trace", false, true, true),
        ("debug,h2=warn", true, false, false),
        ("info", false, false, true),
    ] {
        let text = written(LogFormat::Text, directives, work);
        let found = (text.contains("ours"), text.contains("frame"), text.contains("said by h2"));
        assert_eq!(found, (has_ours, has_frames, has_info), "{directives}: {text}");
    }
}

#[test]
fn directives_may_name_spans() {
    let text = written(LogFormat::Text, "off,[chosen]=info", || {
        error_span!("other").in_scope(|| info!("outside"));
        error_span!("chosen").in_scope(|| info!("inside"));
    });
    assert!(text.contains("inside") && !text.contains("outside"), "{text}");
}

#[test]
fn a_flood_is_ten_lines_a_second_and_a_count() {
    let now = Instant::now();
    let mut ration = Ration::new(now);
    let written: Vec<_> = (0..25).filter_map(|_| ration.take(now)).collect();
    assert_eq!(written, [0; 10]);
    assert_eq!(ration.take(now + std::time::Duration::from_millis(999)), None);
    assert_eq!(ration.take(now + std::time::Duration::from_secs(1)), Some(16));
    assert_eq!(ration.take(now + std::time::Duration::from_secs(1)), Some(0));
}

#[test]
fn a_flood_does_not_hide_other_lines() {
    let text = written(LogFormat::Json, "info", || {
        for idx in 0..1000 {
            warn!(idx, "flood");
        }
        warn!("another place");
        (0..100).for_each(|_| info!("chosen"));
    });
    let messages: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["message"].to_string())
        .collect();
    let num = |message: &str| messages.iter().filter(|line| line.contains(message)).count();
    // Twenty, where a second ends meanwhile.
    assert!((10..=20).contains(&num("flood")), "{}", num("flood"));
    assert_eq!((num("another place"), num("chosen")), (1, 100));
}

/// A pipe that is full: a write ends when the other side goes away.
struct Stuck(Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_that_nobody_reads_are_counted_and_hold_nobody_up() {
    let (release, stuck) = sync_channel::<()>(0);
    let writer = LogWriter::new(Stuck(stuck));
    let layer = layer(LogFormat::Text, EnvFilter::new("info"), writer.queue());
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        (0..20_000).for_each(|idx| info!(idx, "line"));
    });
    assert!(writer.num_dropped() > 10_000, "{}", writer.num_dropped());
    drop(release);
}
