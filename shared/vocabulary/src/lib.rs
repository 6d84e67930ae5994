//! AdaptiVocab as a library.
