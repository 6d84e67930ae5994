use crate::{Checkpoint, ModelConfig};

/// The names under which a checkpoint has the two matrices with a row for each token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenTensors {
    /// The embedding.
    pub embedding: String,
    /// The head's matrix; nothing where it is the embedding.
    pub head: Option<String>,
}

impl Checkpoint {
    /// Where embedding and head are. What is stored counts, not what config.json says of it, which a conversion or a
    /// change of the vocabulary may have left behind: a head of its own is used although the two are called tied, and the
    /// embedding is where no head is stored. Both are warned of.
    #[must_use]
    pub fn token_tensors(&self, config: &ModelConfig) -> TokenTensors {
        let family = config.family;
        let (head, model) = (family.head_tensor(), self.model());
        let embedding = format!("{}{}", self.prefix(family.module_prefix()), family.embedding_tensor());
        if !self.contains(&embedding) && self.contains(head) && config.tie_word_embeddings {
            // Of tied weights one name is enough, and some files keep the other one.
            return TokenTensors { embedding: head.to_owned(), head: None };
        }
        let has_head = self.contains(head) && !self.is_same(&embedding, head);
        match (has_head, config.tie_word_embeddings) {
            (true, true) => tracing::warn!(
                model,
                "config.json says that embedding and head are one matrix, but {head} is another one: it is used; set \
                 tie_word_embeddings to false"
            ),
            (false, false) if !self.contains(head) => tracing::warn!(
                model,
                "config.json says that the head is a matrix of its own, but there is no {head}: the embedding is used; if \
                 that is meant, set tie_word_embeddings to true"
            ),
            _ => {}
        }
        TokenTensors { embedding, head: has_head.then(|| head.to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;

    use safetensors::Dtype;
    use safetensors::tensor::TensorView;
    use tempfile::TempDir;

    use super::*;
    use crate::ModelFiles;

    const EMBEDDING: &str = "model.embed_tokens.weight";
    const HEAD: &str = "lm_head.weight";

    /// What is found among tensors of one element each, in a file that calls the first by a second name.
    fn found(tie: bool, stored: &[(&str, u8)], alias: Option<(&str, &str)>) -> (String, Option<String>) {
        let dir = TempDir::new().unwrap();
        let config = serde_json::json!({
            "model_type": "llama", "vocab_size": 1, "hidden_size": 2, "intermediate_size": 1, "num_hidden_layers": 1,
            "num_attention_heads": 1, "max_position_embeddings": 8, "tie_word_embeddings": tie,
        });
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let bytes: Vec<[u8; 2]> = stored.iter().map(|(_, byte)| [0, *byte]).collect();
        let tensors = stored
            .iter()
            .zip(&bytes)
            .map(|((name, _), bytes)| (*name, TensorView::new(Dtype::BF16, vec![1, 1], bytes).unwrap()));
        let metadata = alias.map(|(alias, name)| HashMap::from([(alias.to_owned(), name.to_owned())]));
        let file = safetensors::serialize(tensors, metadata).unwrap();
        fs::write(dir.path().join("model.safetensors"), file).unwrap();
        let files = ModelFiles::open(dir.path()).unwrap();
        let config = ModelConfig::parse(&files).unwrap();
        let tensors = Checkpoint::open(&files).unwrap().token_tensors(&config);
        (tensors.embedding, tensors.head)
    }

    #[test]
    fn what_is_stored_counts() {
        let norm = ("model.norm.weight", 1);
        let (embedding, head) = (|| EMBEDDING.to_owned(), || Some(HEAD.to_owned()));
        for (tie, stored, expected) in [
            (true, &[(EMBEDDING, 1), norm][..], (embedding(), None)),
            (false, &[(EMBEDDING, 1), norm], (embedding(), None)),
            (true, &[(HEAD, 1), norm], (HEAD.to_owned(), None)),
            (true, &[(EMBEDDING, 1), (HEAD, 1), norm], (embedding(), None)),
            (true, &[(EMBEDDING, 1), (HEAD, 2), norm], (embedding(), head())),
            (false, &[(EMBEDDING, 1), (HEAD, 2), norm], (embedding(), head())),
            // Without the outer name, as some files are; a matrix that is missing is named by whoever asks for it.
            (
                true,
                &[("embed_tokens.weight", 1), ("norm.weight", 1)],
                ("embed_tokens.weight".to_owned(), None),
            ),
            (false, &[(HEAD, 1), norm], (embedding(), head())),
        ] {
            assert_eq!(found(tie, stored, None), expected, "tied {tie}, {stored:?}");
        }
    }

    #[test]
    fn a_name_that_the_file_gives_a_shared_tensor_is_as_good() {
        let (embedding, head) = (EMBEDDING.to_owned(), HEAD.to_owned());
        assert_eq!(found(true, &[(EMBEDDING, 1)], Some((HEAD, EMBEDDING))), (embedding.clone(), None));
        assert_eq!(found(true, &[(HEAD, 1)], Some((EMBEDDING, HEAD))), (embedding, None));
        assert_eq!(found(true, &[(HEAD, 1)], Some(("format", "pt"))), (head, None));
    }
}
