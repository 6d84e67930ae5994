//! What each serving subcommand puts together.

use std::future::Future;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use axum::Router;
use fused_checkpoint::ModelFiles;
use fused_engine::Engine;
use fused_gateway::{ApiKeys, Gateway};
use fused_lifecycle::Lifecycle;
use fused_proto::FILE_DESCRIPTOR_SET;
use fused_settings::Settings;
use fused_tokenizer::{EngineEndpoint, Tokenizer};
use fused_vocabulary::PatchVocabulary;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::transport::server::Connected;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::process::{Failure, Process, print};
use crate::{http_server, model};

const TEXT_SERVICE: &str = "fused.text.v1.TextGeneration";
const ENGINE_SERVICE: &str = "fused.engine.v1.Engine";
const TOKENIZER_GRPC_PORT: u16 = 50051;
const ENGINE_GRPC_PORT: u16 = 50052;
const DEFAULT_TOKENIZER: &str = "http://127.0.0.1:50051";
const DEFAULT_ENGINE: &str = "http://127.0.0.1:50052";
