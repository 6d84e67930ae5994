//! Operating it: processes that come, go and hang, and many requests at once. One binary an area: each links everything there is.

mod apart;
mod door;
mod drain;
mod preemption;
mod prefix_sharing;
mod pressure;
mod replicas;
mod scheduling;
mod watchdog;
