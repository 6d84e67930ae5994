//! Sampling, with the vocabulary of Llama 3.

use fused_gpu::Buffer;
use fused_kernels::RowSampling;
use fused_kernels::cuda::{Error, Kernels, Sample, SampledRows};

use crate::table::{Table, Work};

const VOCABULARY: usize = 128_256;
const MAX_TOP: usize = 20;
/// Logits that are drawn before they repeat.
const NUM_DRAWN: usize = 4 << 20;

pub(crate) fn print(table: &Table, kernels: &Kernels) -> Result<(), Error> {
    let warm = RowSampling { temperature: 0.7, ..RowSampling::default() };
    let told = RowSampling { flags: RowSampling::WANTS_LOGPROBS, num_top: 20, ..warm };
    let ways = [
        ("greedy", RowSampling::default()),
        ("T 0.7", warm),
        ("min_p 0.05", RowSampling { log_min_p: RowSampling::log_min_p(0.05), ..warm }),
        ("top_p 0.9", RowSampling { top_p: 0.9, ..warm }),
        ("T 3, top_p 0.9", RowSampling { temperature: 3.0, top_p: 0.9, ..warm }),
        ("top_k 50", RowSampling { top_k: 50, ..warm }),
        ("top_k 50, top_p 0.9", RowSampling { top_k: 50, top_p: 0.9, ..warm }),
        ("top_k 2000", RowSampling { top_k: 2000, ..warm }),
        ("20 logprobs", told),
    ];
    for num_rows in [1, 64, 256] {
        let row_bytes = num_rows * VOCABULARY * 4;
        let num_places = table.num_places(row_bytes);
        let logits = logits(table, num_places * row_bytes)?;
        let (tokens, last_tokens) = (table.random(num_rows * 4)?, table.indices(0..num_rows)?);
        let logprobs = table.random(num_rows * (1 + 2 * MAX_TOP) * 4)?;
        for (way, sampling) in ways {
            let rows: Vec<RowSampling> = (1..=num_rows as u64)
                .map(|row| RowSampling { random: row.wrapping_mul(0x9e37_79b9_7f4a_7c15), ..sampling })
                .collect();
            let rows = table.gpu.upload(bytemuck::cast_slice(&rows))?;
            // The logits once: what is read again comes from the cache, if it is there.
            let work = Work::Bytes(row_bytes as f64);
            table.line(
                "sample",
                &format!("{num_rows} x {VOCABULARY}, {way}"),
                work,
                num_places,
                |place| {
                    kernels.sample(&Sample {
                        vocabulary: VOCABULARY,
                        num_rows,
                        logits: logits.slice(place * row_bytes..(place + 1) * row_bytes)?,
                        // SAFETY: the rows' lists, where they have any, are memory of the bench, which lives as long as the launches.
                        rows: unsafe { SampledRows::vouched_for(rows.view()) },
                        last_tokens: last_tokens.view(),
                        tokens: tokens.view(),
                        logprobs: logprobs.view(),
                        max_top: MAX_TOP,
                    })
                },
            )?;
        }
    }
    Ok(())
}

/// Exponentially distributed, so that the K-th likeliest token has about 1/K^(2/T) of the likeliest one's probability: at
/// T 0.7 most of it is on a few tokens, as a model's mostly is, at T 3 on very many.
fn logits(table: &Table, len: usize) -> Result<Buffer, Error> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let drawn: Vec<f32> = std::iter::repeat_with(|| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        -2.0 * (((state >> 40) + 1) as f32 / (1_u64 << 24) as f32).ln()
    })
    .take(NUM_DRAWN.min(len / 4))
    .collect();
    let block: &[u8] = bytemuck::cast_slice(&drawn);
    let buffer = table.gpu.alloc(len)?;
    let mut filled = 0;
    while filled < len {
        let more = block.len().min(len - filled);
        buffer.write(filled, &block[..more])?;
        filled += more;
    }
    Ok(buffer)
}
