//! Hugging Face model directories.
