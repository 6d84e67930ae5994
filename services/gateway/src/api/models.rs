use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use fused_status::{Code, Error};
use serde::Serialize;

use crate::backend::Model;
use crate::error::Result;
use crate::gateway::Shared;

/// OpenAI's list object.
#[derive(Serialize)]
pub(super) struct List<T> {
    object: &'static str,
    data: Vec<T>,
}

/// OpenAI's model object, with what other servers tell beside it.
#[derive(Serialize)]
pub(super) struct ModelObject {
    id: String,
    object: &'static str,
    created: i64,
    owned_by: &'static str,
    /// The model's own name, whatever it is served under.
    root: String,
    /// Of an adapter; there are none.
    parent: Option<()>,
    max_model_len: Option<u32>,
}

impl ModelObject {
    /// The model under one of its names.
    fn new(model: &Model, id: &str) -> Self {
        Self {
            id: id.to_owned(),
            object: "model",
            created: model.created_unix_s,
            owned_by: "fused",
            root: model.root.clone(),
            parent: None,
            max_model_len: model.max_model_len,
        }
    }
}

/// `GET /v1/models`.
pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Result<Json<List<ModelObject>>> {
    let model = shared.backend.model().await?;
    let names = std::iter::once(&model.id).chain(&model.aliases);
    Ok(Json(List { object: "list", data: names.map(|name| ModelObject::new(&model, name)).collect() }))
}

/// `GET /v1/models/{id}`. The text service says which names it knows.
pub(super) async fn retrieve(
    State(shared): State<Arc<Shared>>,
    id: std::result::Result<Path<String>, PathRejection>,
) -> Result<Json<ModelObject>> {
    let Path(id) = id.map_err(|rejection| {
        let message = "no model has a name that is not UTF-8";
        Error::new(Code::ModelNotFound, message).with_param("model").with_cause(&rejection)
    })?;
    let model = shared.backend.ask_model(Some(id)).await?;
    Ok(Json(ModelObject::new(&model, &model.id)))
}
