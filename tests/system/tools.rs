//! The tools beside the server. One binary an area: each links everything there is.

mod adapt_eval;
mod vocab;
mod vocab_import;
mod vocab_report;
