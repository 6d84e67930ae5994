//! The product from outside: what it serves, refuses and shows. One binary an area: each links everything there is.

mod bad_input;
mod chat_templates;
mod clients;
mod concurrency;
mod golden;
mod grpc_edge;
mod main_job;
mod outside;
mod start_up;
mod trace;
