use std::fmt;

/// A page of metrics.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// The sum of a metric over its labels, or, where `name` has them (`name{label="value"}`), the one value; 0
    /// where it was never recorded.
    #[must_use]
    pub fn get(&self, name: &str) -> f64 {
        self.0
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
