use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use fused_status::Error;
use futures_util::{StreamExt, stream};
use http::StatusCode;
use http_body::Body as _;
use proptest::prelude::*;
use tokio::time::Instant;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::ServiceExt;

use super::messages::{AllBytes, Boundary, MAX_CONNECTION_BYTES, MESSAGE_TIMEOUT, Messages};
use super::{grpc, grpc_timeout};
use crate::serve::ConnectionBytes;

const CHECK: &str = "/grpc.health.v1.Health/Check";

fn served() -> Router {
    grpc(Routes::new(tonic_health::server::health_reporter().1))
}

fn message(length: u32, bytes: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(length);
    framed.put_slice(bytes);
    framed.freeze()
}

fn call(path: &str, body: Body) -> Request {
    Request::post(path).header("content-type", "application/grpc").body(body).unwrap()
}

/// The status of an answer, in its head or its trailers.
async fn status(response: Response) -> Status {
    if let Some(status) = Status::from_header_map(response.headers()) {
        return status;
    }
    let mut body = response.into_body();
    loop {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await;
        if let Ok(trailers) = frame.unwrap().unwrap().into_trailers() {
            return Status::from_header_map(&trailers).unwrap();
        }
    }
}

async fn answer(request: Request) -> Status {
    status(served().oneshot(request).await.unwrap()).await
}

#[tokio::test]
async fn what_tonic_refuses_is_told_in_our_words() {
    let too_large = message(17 << 20, b"");
    let compressed = {
        let mut request = call(CHECK, Body::from(message(0, b"")));
        request.headers_mut().insert("grpc-encoding", "gzip".parse().unwrap());
        request
    };
    let refused = [
        (call("/no.such.Service/Call", Body::from(message(0, b""))), Code::Unimplemented, "reflection"),
        (call(CHECK, Body::from(too_large)), Code::InvalidArgument, "16 MiB"),
        (call(CHECK, Body::from(message(3, &[0xff; 3]))), Code::InvalidArgument, ".proto"),
        (call(CHECK, Body::from("{\"service\": 1}")), Code::InvalidArgument, "uncompressed gRPC message"),
        (call(CHECK, Body::from(message(9, b"ab"))), Code::InvalidArgument, "whole"),
        (call(CHECK, Body::empty()), Code::InvalidArgument, "send one"),
        // A service's name that is not served: the field 1, a string of one byte.
        (call(CHECK, Body::from(message(3, b"\x0a\x01x"))), Code::NotFound, "reflection"),
        (compressed, Code::Unimplemented, "identity"),
    ];
    for (request, code, advice) in refused {
        let status = answer(request).await;
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(advice), "{status:?}");
        assert!(fused_status::is_ours(&status), "{status:?}");
    }
    let fine = answer(call(CHECK, Body::from(message(0, b"")))).await;
    assert_eq!(fine.code(), Code::Ok);
}

#[tokio::test]
async fn who_speaks_no_grpc_is_told_so() {
    let request = Request::post(CHECK).header("content-type", "application/json").body(Body::from("{}"));
    let response = served().oneshot(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert!(status(response).await.message().contains("application/grpc"));
}

#[tokio::test(start_paused = true)]
async fn a_calls_own_deadline_is_kept() {
    let mut request = call(CHECK, Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>()));
    request.headers_mut().insert("grpc-timeout", "3S".parse().unwrap());
    let start = Instant::now();
    let status = answer(request).await;
    assert_eq!((status.code(), start.elapsed().as_secs()), (Code::DeadlineExceeded, 3));
    assert!(status.message().contains("grpc-timeout"), "{status:?}");
}

#[test]
fn grpc_timeouts_have_digits_and_a_unit() {
    assert_eq!(grpc_timeout("1500m"), Some(Duration::from_millis(1500)));
    assert_eq!(grpc_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
    for wrong in ["", "S", "1", "1s", "-1S", "123456789S", "1ä"] {
        assert!(wrong == "S" || grpc_timeout(wrong).is_none(), "{wrong}");
    }
}

/// Messages that never end, beside others: with their last byte they would be whole.
#[tokio::test(start_paused = true)]
async fn a_message_without_its_end_is_refused_after_its_time() {
    for sent in [b"".as_slice(), &[0, 0], &message(9, b"abc"), &message(0, b"")] {
        let first = stream::iter([Ok::<_, std::io::Error>(Bytes::copy_from_slice(sent))]);
        let start = Instant::now();
        let status = answer(call(CHECK, Body::from_stream(first.chain(stream::pending())))).await;
        assert_eq!((status.code(), start.elapsed()), (Code::DeadlineExceeded, MESSAGE_TIMEOUT), "{sent:?}");
        assert!(status.message().contains("send it whole"), "{status:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_drips_is_refused_after_the_same_time() {
    let drops = stream::unfold(0, |num| async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let drop = if num == 0 { message(1 << 20, b"") } else { Bytes::from_static(b"x") };
        Some((Ok::<_, std::io::Error>(drop), num + 1))
    });
    let status = answer(call(CHECK, Body::from_stream(drops))).await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
}

async fn next(messages: &mut Messages) -> Result<usize, Error> {
    let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *messages).poll_frame(cx)).await;
    match frame.unwrap() {
        Ok(frame) => Ok(frame.into_data().unwrap().len()),
        Err(error) => Err(Error::from(*error.downcast::<Status>().unwrap())),
    }
}

#[tokio::test]
async fn unfinished_messages_of_a_connection_take_so_much_and_no_more() {
    const PART: usize = 8 << 20;
    let (connection, all) = (ConnectionBytes::default(), Arc::new(AllBytes::default()));
    let part = message(15 << 20, &vec![0; PART - 5]);
    let begin = || {
        let body = stream::iter([Ok::<_, std::io::Error>(part.clone())]).chain(stream::pending());
        Messages::new(Body::from_stream(body), connection.clone(), Arc::clone(&all))
    };
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTION_BYTES / PART {
        let mut messages = begin();
        next(&mut messages).await.unwrap();
        held.push(messages);
    }
    let refused = next(&mut begin()).await.unwrap_err();
    assert_eq!(refused.code(), fused_status::Code::QueueFull);
    held.pop();
    next(&mut begin()).await.unwrap();
}

proptest! {
    #[test]
    fn a_boundary_is_found_however_the_bytes_are_cut(
        lengths in prop::collection::vec(0..40_u32, 1..20),
        cuts in prop::collection::vec(1..30_usize, 1..200),
    ) {
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        for length in lengths {
            bytes.extend_from_slice(&message(length, &vec![7; length as usize]));
            ends.push(bytes.len());
        }
        let (mut boundary, mut position) = (Boundary::default(), 0);
        for cut in cuts.into_iter().cycle() {
            if position == bytes.len() {
                break;
            }
            let end = bytes.len().min(position + cut);
            let passed = boundary.pass(&bytes[position..end]);
            let last = ends.iter().rev().find(|boundary| (position + 1..=end).contains(*boundary));
            prop_assert_eq!(passed, last.map(|last| end - last));
            position = end;
        }
    }
}
