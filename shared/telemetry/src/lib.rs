//! Traces across the services, logs, Prometheus text.
