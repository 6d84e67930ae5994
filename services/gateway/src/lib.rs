//! OpenAI-style REST to the text API and back.
