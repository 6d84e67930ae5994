use http::StatusCode;

/// `GET /health`: the process lives. It says nothing of the services behind, because restarting this one helps none of
/// them.
pub(super) async fn health() -> StatusCode {
    StatusCode::OK
}
