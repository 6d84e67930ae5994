//! AdaptiVocab (arXiv 2503.19693) as a library: a base tokenizer, a patch vocabulary on top of it, and what both mean
//! for text, token ids and embedding rows.
//!
//! Two id spaces meet here. *Base ids* are those of the model's own `tokenizer.json`; *model ids* are those of the
//! adapted model, in which some base tokens are removed and n-tokens (each stands for several base tokens) are added.
//! Without a patch vocabulary they are the same. This room knows no model, no request and no network; everything in it
//! is a function of its inputs.
//!
//! Text goes [`Vocabulary::encode`], or in pieces [`Encoder`], → ids; ids go [`Decoder`] → text; [`PatchVocabulary`] is
//! the file between `fused vocab build` and everyone else, and [`import`] makes one of what AdaptiVocab's own code writes;
//! [`embedding`] has the weights by which an adapted model's rows are made; [`report`] measures what a patch vocabulary
//! does to a text.

mod base;
pub mod build;
mod decoder;
mod documents;
pub mod embedding;
mod encoder;
mod error;
mod extra_tokens;
mod fingerprint;
pub mod import;
mod patch;
pub mod report;
mod segment;
mod token;
mod vocabulary;

pub use base::base_token_id;
pub use decoder::{Decoder, SpecialText};
pub use documents::work_in_order;
pub use encoder::Encoder;
pub use error::Error;
pub use extra_tokens::{TokenizerFiles, with_extra_tokens};
pub use fingerprint::{Fingerprint, fingerprint};
pub use patch::{Mode, NToken, PatchContent, PatchVocabulary, Removed, Row, Segmentation};
pub use token::TokenId;
pub use vocabulary::{Encoding, SpecialTokens, Vocabulary};

/// A result of this room.
pub type Result<T> = std::result::Result<T, Error>;
