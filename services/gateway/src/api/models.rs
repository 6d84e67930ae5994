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

/// OpenAI's model object, with the context's length as other servers spell it.
#[derive(Serialize)]
pub(super) struct ModelObject {
    id: String,
    object: &'static str,
    created: i64,
    owned_by: &'static str,
    max_model_len: Option<u32>,
}

impl From<&Model> for ModelObject {
    fn from(model: &Model) -> Self {
        Self {
            id: model.id.clone(),
            object: "model",
            created: model.created_unix_s,
            owned_by: "fused",
            max_model_len: model.max_model_len,
        }
    }
}

/// `GET /v1/models`.
pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Result<Json<List<ModelObject>>> {
    let model = shared.backend.model().await?;
    Ok(Json(List { object: "list", data: vec![ModelObject::from(&*model)] }))
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
    Ok(Json(ModelObject::from(&model)))
}
