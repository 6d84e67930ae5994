//! Prints, for attention of a small and of a large model: time, GFLOP/s, and the rate at which keys and values are read.
//!
//! `cargo bench -p fused-kernels --bench attention`
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use fused_kernels::{Attention, AttentionSequence, attention, instruction_set};

/// Layers in a slot, of which one is computed: its keys and values lie this much further apart than they are long.
const NUM_LAYERS: usize = 6;
/// Query heads, key and value heads, elements of a head.
const SHAPES: [(&str, usize, usize, usize); 2] = [("demo-llama", 8, 4, 32), ("llama-8b", 32, 8, 128)];
/// Groups of sequences: how many, tokens before, new tokens. Some batches are of unequal lengths.
const BATCHES: [&[(usize, usize, usize)]; 8] = [
    &[(1, 199, 1)],
    &[(16, 199, 1)],
    &[(1, 4095, 1)],
    &[(15, 127, 1), (1, 8191, 1)],
    &[(1, 0, 100)],
    &[(1, 0, 1000)],
    &[(1, 4000, 96)],
    &[(15, 127, 1), (1, 4000, 96)],
];

fn main() {
    println!("{}, {} threads", instruction_set(), rayon::current_num_threads());
    println!("shape        sequences x context + new             µs  GFLOP/s    GB/s");
    for (name, num_heads, num_kv_heads, head_dim) in SHAPES {
        let plane = num_kv_heads * head_dim;
        let shape = Attention {
            num_heads,
            num_kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window: None,
            token_stride: NUM_LAYERS * 2 * plane,
            keys_offset: 2 * plane,
            values_offset: 3 * plane,
        };
        for groups in BATCHES {
            let lengths: Vec<(usize, usize)> =
                groups.iter().flat_map(|&(num, context, new)| vec![(context, new); num]).collect();
            let num_tokens: usize = lengths.iter().map(|(context, new)| context + new).sum();
            let num_new: usize = lengths.iter().map(|(_, new)| new).sum();
            let slots = filled(num_tokens * shape.token_stride);
            let queries = filled(num_new * num_heads * head_dim);
            let mut rest = &slots[..];
            let sequences = lengths.iter().map(|&(context, num_queries)| {
                let (slot, behind) = rest.split_at((context + num_queries) * shape.token_stride);
                rest = behind;
                AttentionSequence { slot, num_queries }
            });
            let sequences: Vec<_> = sequences.collect();
            let mut out = vec![0.0; queries.len()];
            let best = rayon::scope(|_| {
                best_of(|| attention(&shape, black_box(&sequences), &queries, num_heads * head_dim, &mut out))
            });
            let num_pairs: usize =
                lengths.iter().map(|(context, new)| (context + 1..=context + new).sum::<usize>()).sum();
            let flops = 4.0 * (num_pairs * num_heads * head_dim) as f64;
            let bytes = 8.0 * (num_tokens * plane) as f64;
            let groups = groups.iter().map(|(num, context, new)| format!("{num} x {context} + {new}"));
            let groups = groups.collect::<Vec<_>>().join(", ");
            let seconds = best.as_secs_f64();
            println!(
                "{name:<12} {groups:<32} {:>10.1} {:>8.1} {:>7.1}",
                seconds * 1e6,
                flops / seconds / 1e9,
                bytes / seconds / 1e9,
            );
        }
    }
}

fn filled(len: usize) -> Vec<f32> {
    (0..len).map(|at| (at % 251) as f32 / 256.0 - 0.5).collect()
}

/// The fastest of many runs, of at least a quarter of a second in all.
fn best_of(mut body: impl FnMut()) -> Duration {
    let start = Instant::now();
    let mut best = Duration::MAX;
    let mut num_runs = 0;
    while num_runs < 5 || start.elapsed() < Duration::from_millis(250) {
        let start = Instant::now();
        body();
        best = best.min(start.elapsed());
        num_runs += 1;
    }
    best
}
