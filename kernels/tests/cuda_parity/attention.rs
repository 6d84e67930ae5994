use fused_gpu::{Buffer, Gpu};
use fused_kernels::cuda::{
    Attention, Decode, DecodeOrder, DecodePiece, DecodePieces, DecodeSplit, Element, HEAD_DIMS, HeadShape,
    Kernels, KvLayout, Prefill, Slots, partial_bytes, prefill_tiles,
};
use fused_kernels::{AttentionSequence, attention};
use fused_virtual_memory::{Access, CudaMemory, VirtualMemory};

use crate::device::{
    ELEMENTS, Guarded, elements, from_bytes, kernels, numbers, plain, relative_error, round, rounded,
    to_bytes,
};

const NUM_LAYERS: usize = 2;
const LAYER: usize = 1;

/// A batch: the tokens of each sequence, and how many of the last are new.
#[derive(Clone, Debug)]
struct Case {
    shape: HeadShape,
    window: Option<usize>,
    sequences: Vec<(usize, usize)>,
}

fn shape(element: Element, num_heads: usize, num_kv_heads: usize, head_dim: usize) -> HeadShape {
    HeadShape { element, num_heads, num_kv_heads, head_dim }
}

#[test]
fn chunks_of_prompts() {
    let Some(kernels) = kernels() else { return };
    for element in ELEMENTS {
        for head_dim in HEAD_DIMS {
            let mixed = vec![(1, 1), (300, 300), (5, 5), (129, 29), (64, 64), (65, 1), (128, 127)];
            let few = vec![(700, 130)];
            for case in [
                Case { shape: shape(element, 8, 2, head_dim), window: None, sequences: mixed.clone() },
                Case { shape: shape(element, 4, 4, head_dim), window: Some(50), sequences: few.clone() },
                Case { shape: shape(element, 3, 1, head_dim), window: Some(1), sequences: mixed.clone() },
            ] {
                let batch = Batch::new(kernels.gpu(), &case);
                batch.check(&kernels, &|out| batch.prefill(&kernels, out));
            }
        }
    }
    let long =
        Case { shape: shape(Element::Bf16, 8, 2, 128), window: None, sequences: vec![(2, 2), (2100, 1000)] };
    let batch = Batch::new(kernels.gpu(), &long);
    batch.check(&kernels, &|out| batch.prefill(&kernels, out));
}

/// Chunks of any length behind contexts of any length, several in one launch, for every number of heads that share keys.
#[test]
fn chunks_at_the_end_of_long_contexts() {
    let Some(kernels) = kernels() else { return };
    for element in ELEMENTS {
        for head_dim in [64, 128] {
            for (num_heads, num_kv_heads, window, sequences) in [
                (2, 2, None, vec![(4001 + 171, 171), (1 + 300, 300), (127 + 1, 1)]),
                (4, 1, None, vec![(129 + 128, 128), (2050 + 77, 77), (64 + 192, 192)]),
                (8, 1, None, vec![(1000 + 299, 299), (3 + 2, 2)]),
                (4, 1, Some(128), vec![(129 + 128, 128), (2050 + 77, 77), (64 + 192, 192)]),
                (8, 1, Some(333), vec![(1000 + 299, 299), (3 + 2, 2)]),
            ] {
                let shape = shape(element, num_heads, num_kv_heads, head_dim);
                let mut batch = Batch::new(kernels.gpu(), &Case { shape, window, sequences });
                batch.check(&kernels, &|out| batch.prefill(&kernels, out));
                // Scores that are far apart: most of what was summed up is forgotten at a higher one.
                batch.multiply_queries(kernels.gpu(), 16.0);
                batch.check(&kernels, &|out| batch.prefill(&kernels, out));
            }
        }
    }
}

/// Many tiles of unequal length: on Hopper a block has several of them one after the other, and the next launch begins with what
/// the last one left.
#[test]
fn more_tiles_than_blocks() {
    let Some(kernels) = kernels() else { return };
    let sequence = |idx: usize| {
        let num_new = 1 + idx * 97 % 300;
        (idx * 113 % 200 + num_new, num_new)
    };
    let sequences: Vec<_> = (0..24).map(sequence).collect();
    let num_tiles: usize = sequences.iter().map(|(_, num_new)| num_new.div_ceil(128)).sum();
    for element in ELEMENTS {
        for head_dim in [64, 128] {
            for window in [None, Some(100)] {
                let shape = shape(element, 16, 4, head_dim);
                assert!(16 * num_tiles > 4 * kernels.gpu().num_multiprocessors(), "a block has several");
                let batch = Batch::new(kernels.gpu(), &Case { shape, window, sequences: sequences.clone() });
                batch.check(&kernels, &|out| {
                    batch.prefill(&kernels, out);
                    batch.prefill(&kernels, out);
                });
            }
        }
    }
}

#[test]
fn single_tokens() {
    let Some(kernels) = kernels() else { return };
    for element in ELEMENTS {
        for head_dim in HEAD_DIMS {
            let mixed = vec![(300, 1), (5, 1), (1, 1), (129, 1), (32, 1), (33, 1), (128, 1), (1000, 1)];
            for case in [
                Case { shape: shape(element, 8, 2, head_dim), window: None, sequences: mixed.clone() },
                Case { shape: shape(element, 4, 4, head_dim), window: Some(70), sequences: mixed.clone() },
                Case { shape: shape(element, 16, 1, head_dim), window: Some(1), sequences: mixed.clone() },
                Case { shape: shape(element, 5, 1, head_dim), window: None, sequences: vec![(1, 1)] },
            ] {
                let batch = Batch::new(kernels.gpu(), &case);
                for num in [1, 3, 16] {
                    batch.check(&kernels, &|out| batch.decode(&kernels, out, &batch.cut(num)));
                }
                batch.check(&kernels, &|out| batch.decode(&kernels, out, &batch.cut_as_chosen(&kernels)));
            }
        }
    }
}

/// Lengths of which a single one is most of the work, beside as many short ones as there may be.
#[test]
fn single_tokens_of_unequal_contexts() {
    let Some(kernels) = kernels() else { return };
    let long_and_short = |num_short| -> Vec<(usize, usize)> {
        [(8192, 1)].into_iter().chain((0..num_short).map(|nth| (1 + nth * 37 % 260, 1))).collect()
    };
    for (shape, window, num_short) in [
        (shape(Element::Bf16, 32, 8, 128), None, 1),
        (shape(Element::Bf16, 32, 8, 128), None, 40),
        (shape(Element::F16, 8, 2, 64), None, 100),
        (shape(Element::Bf16, 4, 4, 32), Some(3000), 20),
        (shape(Element::Bf16, 16, 1, 96), None, 30),
    ] {
        let case = Case { shape, window, sequences: long_and_short(num_short) };
        let batch = Batch::new(kernels.gpu(), &case);
        let mut pieces = batch.cut_as_chosen(&kernels);
        assert!(pieces.pieces[0].num_pieces > 1, "the long one is cut");
        batch.check(&kernels, &|out| batch.decode(&kernels, out, &pieces));
        // What fills up a graph's list changes nothing.
        pieces.pieces.extend([DecodePiece::NONE; 19]);
        batch.check(&kernels, &|out| batch.decode(&kernels, out, &pieces));
    }
}

/// A row without a slot pads a batch: its result stays as it was.
#[test]
fn padding_is_left_alone() {
    let Some(kernels) = kernels() else { return };
    let case = Case {
        shape: shape(Element::Bf16, 8, 2, 64),
        window: None,
        sequences: vec![(40, 1), (50, 1), (60, 1)],
    };
    let mut batch = Batch::new(kernels.gpu(), &case);
    batch.slots[1] = 0;
    for num in [1, 4] {
        let out = batch.out(kernels.gpu());
        batch.decode(&kernels, &out, &batch.cut(num));
        let got = out.bytes();
        let row_bytes = 2 * 8 * 64;
        assert!(got[row_bytes..2 * row_bytes].iter().all(|&byte| byte == 0xA5), "the padding row is written");
        let wanted = batch.plain();
        let (got, wanted) =
            (from_bytes(Element::Bf16, &got), [&wanted[..8 * 64], &wanted[2 * 8 * 64..]].concat());
        let got = [&got[..8 * 64], &got[2 * 8 * 64..]].concat();
        assert!(relative_error(&got, &wanted) < 1e-2);
    }
}

/// Behind a sequence's last token there may be no page: a read there would be a fault.
#[test]
fn nothing_is_read_behind_the_last_page() {
    const PAGE: usize = 2 << 20;
    let Some(kernels) = kernels() else { return };
    let shape = shape(Element::Bf16, 32, 8, 128);
    let token_bytes = NUM_LAYERS * 2 * 8 * 128 * 2;
    let num_tokens = PAGE / token_bytes;
    let memory = CudaMemory::new(0, PAGE, PAGE).unwrap();
    let range = memory.reserve(16 * PAGE).unwrap();
    let handle = memory.create(PAGE).unwrap();
    memory.map(range, 0, handle).unwrap();
    memory.set_access(range, 0, PAGE, Access::ReadWrite).unwrap();
    // The last token ends where the page does; the first begins somewhere in it.
    for (len, num_new) in
        [(num_tokens, 1), (num_tokens, num_tokens - 3), (num_tokens - 57, 100), (65, 65), (3, 1)]
    {
        let case = Case { shape, window: None, sequences: vec![(len, num_new)] };
        let mut batch = Batch::new(kernels.gpu(), &case);
        let start = PAGE - len * token_bytes;
        memory.write(range, start, &to_bytes(Element::Bf16, &batch.kept[0])).unwrap();
        batch.slots.fill(memory.device_address(range).unwrap() + start as u64);
        batch.check(&kernels, &|out| match num_new {
            1 => batch.decode(&kernels, out, &batch.cut(5)),
            _ => batch.prefill(&kernels, out),
        });
    }
}

/// A case with its numbers, here and on the device.
struct Batch {
    case: Case,
    /// `[token][layer][K|V][kv head][dim]` of each sequence.
    kept: Vec<Vec<f32>>,
    qkv: Vec<f32>,
    positions: Vec<i32>,
    slots: Vec<u64>,
    layout: KvLayout,
    qkv_there: Buffer,
    _kept_there: Buffer,
}

impl Batch {
    fn new(gpu: &Gpu, case: &Case) -> Self {
        let HeadShape { element, num_kv_heads, head_dim, .. } = case.shape;
        let plane = num_kv_heads * head_dim;
        let token = NUM_LAYERS * 2 * plane;
        let sequences = case.sequences.iter().enumerate();
        let kept: Vec<Vec<f32>> = sequences
            .map(|(idx, &(len, _))| rounded(element, &numbers(len * token, 10 + idx as u64)))
            .collect();
        // Between the slots stands what an earlier request may have left: no numbers.
        let mut bytes = Vec::new();
        let mut starts = Vec::new();
        for kept in &kept {
            starts.push(bytes.len());
            bytes.extend(to_bytes(element, kept));
            bytes.extend(vec![0xFF; 70 * token * 2]);
        }
        let kept_there = gpu.upload(&bytes).unwrap();
        let (mut positions, mut slots) = (Vec::new(), Vec::new());
        for (&(len, num_new), start) in case.sequences.iter().zip(starts) {
            positions.extend((len - num_new..len).map(|position| position as i32));
            slots.extend(vec![kept_there.address() + start as u64; num_new]);
        }
        let qkv: Vec<f32> = numbers(positions.len() * case.shape.num_all() * head_dim, 3)
            .iter()
            .map(|query| 4.0 * query)
            .collect();
        let qkv = rounded(element, &qkv);
        Self {
            case: case.clone(),
            layout: KvLayout {
                token_stride: (2 * token) as u64,
                keys_offset: (LAYER * 2 * plane * 2) as u64,
            },
            qkv_there: elements(gpu, element, &qkv),
            qkv,
            kept,
            positions,
            slots,
            _kept_there: kept_there,
        }
    }

    fn multiply_queries(&mut self, gpu: &Gpu, factor: f32) {
        self.qkv.iter_mut().for_each(|query| *query *= factor);
        self.qkv_there = elements(gpu, self.case.shape.element, &self.qkv);
    }

    fn out(&self, gpu: &Gpu) -> Guarded {
        let shape = self.case.shape;
        Guarded::new(gpu, 2 * self.positions.len() * shape.num_heads * shape.head_dim)
    }

    fn with<T>(&self, gpu: &Gpu, out: &Guarded, launch: impl FnOnce(&Attention<'_>) -> T) -> T {
        let (positions, slots) = (plain(gpu, &self.positions), plain(gpu, &self.slots));
        launch(&Attention {
            shape: self.case.shape,
            layout: self.layout,
            scale: self.scale(),
            window: self.case.window,
            num_rows: self.positions.len(),
            qkv: self.qkv_there.view(),
            out: out.view(),
            positions: positions.view(),
            // SAFETY: memory of the test for every row's tokens, which lives until it has waited for the launches.
            slots: unsafe { Slots::vouched_for(slots.view()) },
        })
    }

    fn prefill(&self, kernels: &Kernels, out: &Guarded) {
        let mut chunks = Vec::new();
        let mut first_row = 0;
        for &(_, num_new) in &self.case.sequences {
            chunks.push((first_row, num_new));
            first_row += num_new;
        }
        let tiles = prefill_tiles(&chunks);
        let tiles_there = plain(kernels.gpu(), &tiles);
        let prefill = Prefill { tiles: tiles_there.view(), num_tiles: tiles.len() };
        self.with(kernels.gpu(), out, |attention| kernels.prefill(attention, &prefill)).unwrap();
    }

    /// Every context in so many pieces, in another order than the rows'.
    fn cut(&self, num_pieces: i32) -> DecodePieces {
        let rows = (0..self.positions.len() as i32).rev();
        let piece = |row| move |piece| DecodePiece { row, piece, num_pieces, first_part: row * num_pieces };
        let pieces = rows.flat_map(|row| (0..num_pieces).map(piece(row))).collect();
        let order = if num_pieces == 1 { DecodeOrder::ByHead } else { DecodeOrder::ByPiece };
        DecodePieces { pieces, order }
    }

    /// As the engine does.
    fn cut_as_chosen(&self, kernels: &Kernels) -> DecodePieces {
        let window = self.case.window.unwrap_or(usize::MAX);
        let contexts = self.case.sequences.iter().map(|(len, _)| *len.min(&window)).enumerate();
        let num_multiprocessors = kernels.gpu().num_multiprocessors();
        let split = DecodeSplit::new(self.case.shape.num_kv_heads, num_multiprocessors);
        split.pieces(&contexts.collect::<Vec<_>>())
    }

    fn decode(&self, kernels: &Kernels, out: &Guarded, pieces: &DecodePieces) {
        let DecodePieces { pieces, order } = pieces;
        let gpu = kernels.gpu();
        let num_parts = 1 + pieces.iter().map(|piece| piece.first_part + piece.piece).max().unwrap_or(0);
        let num_parts = num_parts as usize;
        let pieces_there = plain(gpu, pieces);
        let partial = Guarded::new(gpu, partial_bytes(&self.case.shape, num_parts));
        let counters = Guarded::of(gpu, &vec![0; 4 * num_parts * self.case.shape.num_kv_heads]);
        let decode = Decode {
            pieces: pieces_there.view(),
            num_pieces: pieces.len(),
            order: *order,
            num_parts,
            partial: partial.view(),
            counters: counters.view(),
        };
        self.with(gpu, out, |attention| kernels.decode(attention, &decode)).unwrap();
        partial.bytes();
        assert!(counters.bytes().iter().all(|&byte| byte == 0), "for the next launch");
    }

    fn scale(&self) -> f32 {
        1.0 / (self.case.shape.head_dim as f32).sqrt()
    }

    /// The CPU's attention in f32.
    fn wanted(&self) -> Vec<f32> {
        let HeadShape { num_heads, num_kv_heads, head_dim, .. } = self.case.shape;
        let plane = num_kv_heads * head_dim;
        let shape = fused_kernels::Attention {
            num_heads,
            num_kv_heads,
            head_dim,
            scale: self.scale(),
            window: self.case.window,
            token_stride: NUM_LAYERS * 2 * plane,
            keys_offset: LAYER * 2 * plane,
            values_offset: LAYER * 2 * plane + plane,
        };
        let sequences: Vec<_> = self
            .kept
            .iter()
            .zip(&self.case.sequences)
            .map(|(slot, &(_, num_queries))| AttentionSequence { slot, num_queries })
            .collect();
        let mut out = vec![0.0; self.positions.len() * num_heads * head_dim];
        attention(&shape, &sequences, &self.qkv, self.case.shape.num_all() * head_dim, &mut out);
        out
    }

    /// A plain version that rounds where any 16-bit version must: the weights before they meet the values, and
    /// the result.
    fn plain(&self) -> Vec<f32> {
        let HeadShape { element, num_heads, num_kv_heads, head_dim } = self.case.shape;
        let (plane, token) = (num_kv_heads * head_dim, NUM_LAYERS * 2 * num_kv_heads * head_dim);
        let mut out = Vec::with_capacity(self.positions.len() * num_heads * head_dim);
        let rows = self.case.sequences.iter().zip(&self.kept).flat_map(|(&(_, num), kept)| vec![kept; num]);
        let queries = self.qkv.chunks(self.case.shape.num_all() * head_dim);
        for ((query, kept), &position) in queries.zip(rows).zip(&self.positions) {
            let end = position as usize + 1;
            let start = end.saturating_sub(self.case.window.unwrap_or(end));
            for head in 0..num_heads {
                let query = &query[head * head_dim..][..head_dim];
                let at = LAYER * 2 * plane + head / (num_heads / num_kv_heads) * head_dim;
                let dot = |key: &[f32]| query.iter().zip(key).map(|(q, k)| q * k).sum::<f32>() * self.scale();
                let scores: Vec<f32> =
                    (start..end).map(|token_idx| dot(&kept[token_idx * token + at..][..head_dim])).collect();
                let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f32> = scores.iter().map(|score| (score - top).exp()).collect();
                let total: f32 = weights.iter().sum();
                let mut sums = vec![0.0; head_dim];
                for (token_idx, weight) in (start..end).zip(weights) {
                    let values = &kept[token_idx * token + at + plane..][..head_dim];
                    let weight = round(element, weight);
                    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
                }
                out.extend(sums.iter().map(|sum| round(element, sum / total)));
            }
        }
        out
    }

    /// Runs a kernel twice, and compares.
    #[track_caller]
    fn check(&self, kernels: &Kernels, run: &dyn Fn(&Guarded)) {
        let element = self.case.shape.element;
        let [once, again] = [(); 2].map(|()| {
            let out = self.out(kernels.gpu());
            run(&out);
            out.bytes()
        });
        let wanted = self.wanted();
        let (error, allowed) = (
            relative_error(&from_bytes(element, &once), &wanted),
            2.0 * relative_error(&self.plain(), &wanted),
        );
        assert!(error <= allowed, "{:?}: off by {error}, {allowed} allowed", self.case);
        assert!(once == again, "again: {:?}", self.case);
    }
}
