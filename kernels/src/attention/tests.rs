use super::*;
use crate::testing::{assert_close, numbers};

struct Case {
    shape: Attention,
    /// Context and new tokens of each sequence.
    sequences: Vec<(usize, usize)>,
}

const NUM_LAYERS: usize = 2;

fn case(heads: (usize, usize, usize), window: Option<usize>, sequences: &[(usize, usize)]) -> Case {
    let (num_heads, num_kv_heads, head_dim) = heads;
    let plane = num_kv_heads * head_dim;
    let shape = Attention {
        num_heads,
        num_kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window,
        token_stride: NUM_LAYERS * 2 * plane,
        keys_offset: 2 * plane,
        values_offset: 3 * plane,
    };
    Case { shape, sequences: sequences.to_vec() }
}

fn cases() -> Vec<Case> {
    let mixed = [(0, 1), (5, 1), (0, 40), (63, 1), (64, 1), (199, 1), (100, 37), (0, 130)];
    vec![
        case((1, 1, 1), None, &[(0, 1), (3, 2)]),
        case((8, 4, 32), None, &mixed),
        case((6, 6, 20), None, &mixed),
        case((4, 2, 128), Some(8), &mixed),
        case((4, 1, 64), Some(70), &mixed),
        case((70, 1, 16), None, &[(9, 3)]),
        case((2, 2, 8), Some(1), &mixed),
        case((3, 1, 114), None, &[(1000, 1), (500, 30)]),
    ]
}

impl Case {
    fn slots(&self) -> Vec<Vec<f32>> {
        let sequences = self.sequences.iter().enumerate();
        sequences
            .map(|(idx, (context, new))| numbers((context + new) * self.shape.token_stride, idx as u64 + 10))
            .collect()
    }

    fn query_stride(&self) -> usize {
        // As in a fused product: keys and values stand behind the queries.
        (self.shape.num_heads + 2 * self.shape.num_kv_heads) * self.shape.head_dim
    }

    fn queries(&self) -> Vec<f32> {
        let num_rows: usize = self.sequences.iter().map(|(_, new)| new).sum();
        numbers(num_rows * self.query_stride(), 3).iter().map(|query| 4.0 * query).collect()
    }

    fn run(&self, slots: &[Vec<f32>], queries: &[f32]) -> Vec<f32> {
        let sequences: Vec<_> = slots
            .iter()
            .zip(&self.sequences)
            .map(|(slot, &(_, num_queries))| AttentionSequence { slot, num_queries })
            .collect();
        let num_rows = queries.len() / self.query_stride();
        let mut out = vec![f32::NAN; num_rows * self.shape.num_heads * self.shape.head_dim];
        attention(&self.shape, &sequences, queries, self.query_stride(), &mut out);
        out
    }

    fn reference(&self, slots: &[Vec<f32>], queries: &[f32]) -> Vec<f64> {
        let Attention { num_heads, num_kv_heads, head_dim, scale, window, .. } = self.shape;
        let mut out = Vec::new();
        let mut rows = queries.chunks(self.query_stride());
        for (slot, &(context, new)) in slots.iter().zip(&self.sequences) {
            for position in context..context + new {
                let row = rows.next().unwrap();
                let first = (position + 1).saturating_sub(window.unwrap_or(usize::MAX));
                for head in 0..num_heads {
                    let query = &row[head * head_dim..][..head_dim];
                    let kv_offset = head / (num_heads / num_kv_heads) * head_dim;
                    let at = |token: usize, offset: usize| {
                        &slot[token * self.shape.token_stride + offset + kv_offset..][..head_dim]
                    };
                    let scores: Vec<f64> = (first..=position)
                        .map(|token| {
                            let key = at(token, self.shape.keys_offset);
                            let products = query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k));
                            products.sum::<f64>() * f64::from(scale)
                        })
                        .collect();
                    let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = scores.iter().map(|score| (score - greatest).exp()).sum();
                    out.extend((0..head_dim).map(|element| {
                        let weighted = scores.iter().enumerate().map(|(idx, score)| {
                            let value = at(first + idx, self.shape.values_offset)[element];
                            (score - greatest).exp() / sum * f64::from(value)
                        });
                        weighted.sum::<f64>()
                    }));
                }
            }
        }
        out
    }
}

#[test]
fn attention_agrees_with_the_reference() {
    for case in cases() {
        let (slots, queries) = (case.slots(), case.queries());
        assert_close(&case.run(&slots, &queries), &case.reference(&slots, &queries), 1e-5);
    }
}

#[test]
fn a_query_does_not_depend_on_the_batch_the_chunks_or_the_threads() {
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let five_threads = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
    for case in cases() {
        let (slots, queries) = (case.slots(), case.queries());
        let together = five_threads.install(|| case.run(&slots, &queries));
        assert_eq!(together, one_thread.install(|| case.run(&slots, &queries)));
        for chunk in [1, 2, 7, 64] {
            let mut rows = queries.as_slice();
            let mut apart = Vec::new();
            for (slot, &(context, new)) in slots.iter().zip(&case.sequences) {
                for first in (0..new).step_by(chunk) {
                    let num_new = chunk.min(new - first);
                    let (row, rest) = rows.split_at(num_new * case.query_stride());
                    rows = rest;
                    // The slot ends with the chunk: later tokens are not there yet.
                    let slot = slot[..(context + first + num_new) * case.shape.token_stride].to_vec();
                    let alone = Case { shape: case.shape, sequences: vec![(context + first, num_new)] };
                    apart.extend(alone.run(&[slot], row));
                }
            }
            assert_eq!(together, apart, "{:?} in chunks of {chunk}", case.shape);
        }
    }
}

#[test]
fn every_instruction_set_agrees_with_the_reference() {
    for heads in [(8, 4, 32), (6, 3, 20), (2, 1, 128)] {
        let case = case(heads, Some(90), &[(77, 16)]);
        let (slots, queries) = (case.slots(), case.queries());
        for set in simd::InstructionSet::available() {
            let mut out = vec![f32::NAN; 16 * heads.0 * heads.2];
            set.run(Task {
                shape: &case.shape,
                slot: &slots[0],
                position: 77,
                first_kv_head: 0,
                queries: &queries,
                query_stride: case.query_stride(),
                out: out.chunks_mut(heads.0 * heads.2).collect(),
            });
            assert_close(&out, &case.reference(&slots, &queries), 1e-5);
        }
    }
}

#[test]
fn infinite_keys_end_nothing() {
    let case = case((2, 1, 16), None, &[(3, 2)]);
    let (mut slots, queries) = (case.slots(), case.queries());
    slots[0][case.shape.keys_offset] = f32::INFINITY;
    slots[0][case.shape.keys_offset + 1] = f32::NAN;
    assert_eq!(case.run(&slots, &queries).len(), 2 * 2 * 16);
}
