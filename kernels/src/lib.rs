//! The arithmetic of the forward pass.
