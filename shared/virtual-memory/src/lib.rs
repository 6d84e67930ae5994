//! Virtual memory with physical pages mapped on demand.
