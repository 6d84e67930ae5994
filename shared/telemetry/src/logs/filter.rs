use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Context, Filter};

/// What every crate of this project is named by.
pub(crate) const OURS: &str = "fused";

/// The directives, for events; spans of ours pass whatever they say, for their fields say which request a line is of.
///
/// `debug` means ours: what libraries write at that level (every frame of HTTP/2) is written where a directive names
/// them, as in `debug,h2=debug`.
pub(super) struct LogFilter {
    directives: EnvFilter,
    named: Vec<String>,
}

impl LogFilter {
    pub(super) fn new(directives: EnvFilter) -> Self {
        let text = directives.to_string();
        let targets = text.split(',').filter_map(|directive| Some(directive.rsplit_once('=')?.0));
        let named = targets.map(|target| target.split('[').next().unwrap_or_default().to_owned());
        let named = named.filter(|target| !target.is_empty()).collect();
        Self { directives, named }
    }

    fn is_unwanted(&self, metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        *metadata.level() > Level::INFO
            && !target.starts_with(OURS)
            && !self.named.iter().any(|named| target.starts_with(named))
    }
}

fn is_span_of_ours(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && *metadata.level() <= Level::INFO && metadata.target().starts_with(OURS)
}

impl<S: Subscriber> Filter<S> for LogFilter {
    fn enabled(&self, metadata: &Metadata<'_>, context: &Context<'_, S>) -> bool {
        is_span_of_ours(metadata)
            || (!self.is_unwanted(metadata) && Filter::enabled(&self.directives, metadata, context))
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        // The directives hear of every call site: they may name spans by their fields.
        let interest = Filter::<S>::callsite_enabled(&self.directives, metadata);
        match is_span_of_ours(metadata) {
            true => Interest::always(),
            false if self.is_unwanted(metadata) => Interest::never(),
            false => interest,
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Filter::<S>::max_level_hint(&self.directives).map(|level| level.max(LevelFilter::INFO))
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        Filter::on_new_span(&self.directives, attributes, id, context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        Filter::on_record(&self.directives, id, values, context);
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        Filter::on_enter(&self.directives, id, context);
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        Filter::on_exit(&self.directives, id, context);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        Filter::on_close(&self.directives, id, context);
    }
}
