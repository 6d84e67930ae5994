//! What holds for the tree itself. One binary an area: each links everything there is.

mod arrows;
mod links;
