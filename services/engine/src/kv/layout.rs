/// What one token's keys and values look like in memory: `[layer][K|V][kv head][dim]`, one after the other.
///
/// A slot is `[token]` of these, so that a page holds whole layers of few tokens instead of many tokens of one layer
/// ("tensor slicing"): a 2 MB page then takes 16 tokens of Llama-8B instead of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Layers of the model.
    pub num_layers: usize,
    /// Key and value heads of one layer.
    pub num_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Bytes of one element.
    pub bytes_per_element: usize,
}

impl KvLayout {
    /// Bytes of one token in all layers, K and V: the distance from a token to the next. Pages are no multiple of it.
    #[must_use]
    pub const fn token_bytes(&self) -> usize {
        self.num_layers * 2 * self.plane_bytes()
    }

    /// Bytes of one token's keys (or values) in one layer: `[kv head][dim]`.
    #[must_use]
    pub const fn plane_bytes(&self) -> usize {
        self.num_kv_heads * self.head_dim * self.bytes_per_element
    }

    /// Where a layer's keys begin within a token, in bytes.
    #[must_use]
    pub const fn keys_offset(&self, layer_idx: usize) -> usize {
        layer_idx * 2 * self.plane_bytes()
    }

    /// Where a layer's values begin within a token, in bytes.
    #[must_use]
    pub const fn values_offset(&self, layer_idx: usize) -> usize {
        self.keys_offset(layer_idx) + self.plane_bytes()
    }
}
