//! The gRPC ports as strangers meet them: what they list, what they say, what they hold for them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "a test")]

use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use fused_proto::text::v1::text_generation_client::TextGenerationClient;
use fused_proto::text::v1::{Prompt, TokenizeRequest, prompt};
use fused_testkit::Server;
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

fn start(arguments: &[&str]) -> Server {
    Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), arguments, &[]).unwrap()
}

async fn channel(server: &Server) -> Channel {
    Channel::from_shared(server.urls[0].clone()).unwrap().connect().await.unwrap()
}

async fn listed(server: &Server) -> Vec<String> {
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let mut client = ServerReflectionClient::new(channel(server).await);
    let asked = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    let answer = asked.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}")
    };
    let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tier_lists_its_own_services() {
    let engine = start(&["engine", "--grpc-port", "0"]);
    let tokenizer = start(&["tokenizer", "--grpc-port", "0", "--engine", &engine.urls[0]]);
    let with = |own: &str| {
        let mut names = vec![own.to_owned(), "grpc.health.v1.Health".to_owned()];
        names.push("grpc.reflection.v1.ServerReflection".to_owned());
        names
    };
    assert_eq!(listed(&engine).await, with("fused.engine.v1.Engine"));
    assert_eq!(listed(&tokenizer).await, with("fused.text.v1.TextGeneration"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_transport_refuses_is_told_in_our_words() {
    let engine = start(&["engine", "--grpc-port", "0"]);
    let tokenizer = start(&["tokenizer", "--grpc-port", "0", "--engine", &engine.urls[0]]);
    let text = Some(prompt::Prompt::Text("x".repeat(17 << 20)));
    let prompt = Some(Prompt { prompt: text, add_special_tokens: None });
    let request = TokenizeRequest { prompt, ..TokenizeRequest::default() };
    let mut client = TextGenerationClient::new(channel(&tokenizer).await);
    let refused = client.tokenize(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("16 MiB; shorten it"), "{refused:?}");
    assert_eq!(refused.metadata().get("fused-code").unwrap(), "payload_too_large");

    let request = HealthCheckRequest { service: "no.such.Service".to_owned() };
    let refused = HealthClient::new(channel(&tokenizer).await).check(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound);
    assert!(refused.message().contains("reflection"), "{refused:?}");

    // A method of the other tier.
    let mut client = TextGenerationClient::new(channel(&engine).await);
    let refused = client.tokenize(TokenizeRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented);
    assert!(refused.message().contains("no such method"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_without_their_last_byte_take_a_bounded_memory() {
    const NUM: usize = 40;
    const LENGTH: u32 = 15 << 20;
    let engine = start(&["engine", "--grpc-port", "0"]);
    let tokenizer = start(&["tokenizer", "--grpc-port", "0", "--engine", &engine.urls[0]]);
    let before = tokenizer.resident_bytes().unwrap();
    let mut message = BytesMut::with_capacity(LENGTH as usize);
    message.put_u8(0);
    message.put_u32(LENGTH);
    message.put_bytes(b'x', LENGTH as usize - 6);
    let message = message.freeze();

    let address = tokenizer.urls[0].strip_prefix("http://").unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut answers = Vec::new();
    for _ in 0..NUM {
        let request = http::Request::post(format!("http://{address}/fused.text.v1.TextGeneration/Tokenize"))
            .header("content-type", "application/grpc");
        requests = requests.ready().await.unwrap();
        let (answer, mut body) = requests.send_request(request.body(()).unwrap(), false).unwrap();
        body.send_data(Bytes::clone(&message), false).unwrap();
        answers.push((answer, body));
    }
    // As many as there is no room for are refused; the others wait for their last byte.
    let mut num_refused = 0;
    while num_refused < NUM - (64 << 20) / (15 << 20) - 1 {
        let refused = futures_util::future::select_all(answers.iter_mut().map(|(answer, _)| answer)).await;
        let (answer, idx, _) = refused;
        let head = answer.unwrap();
        assert_eq!(head.headers()["fused-code"], "queue_full", "{head:?}");
        drop(answers.swap_remove(idx));
        num_refused += 1;
    }
    let grown = tokenizer.resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < 256 << 20, "{} MiB more", grown >> 20);
}
