use fused_gpu::View;
use fused_kernels::cuda::{Element, HeadShape, Heads, Kernels, KvLayout, Slots};
use fused_kernels::{rms_norm_in_place, rope_angles, rotate};

use crate::device::{
    ELEMENTS, Guarded, assert_close, kernels, numbers, plain, rounded, rounding_error, to_bytes,
};

const EPSILON: f32 = 1e-6;
const NUM_POSITIONS: usize = 40;
const NUM_LAYERS: usize = 3;
const LAYER: usize = 1;

#[derive(Clone, Copy, Debug)]
struct Case {
    shape: HeadShape,
    num_rows: usize,
    has_bias: bool,
    has_norms: bool,
    has_angles: bool,
}

#[test]
fn heads_are_finished_and_kept() {
    let Some(kernels) = kernels() else { return };
    for element in ELEMENTS {
        for (num_heads, num_kv_heads, head_dim) in
            [(8, 4, 32), (32, 8, 128), (12, 12, 64), (3, 1, 96), (1, 1, 8)]
        {
            let shape = HeadShape { element, num_heads, num_kv_heads, head_dim };
            for (num_rows, has_bias, has_norms, has_angles) in [
                (1, false, false, true),
                (33, true, false, true),
                (33, false, true, true),
                (7, true, false, false),
                (7, false, false, false),
            ] {
                check(&kernels, Case { shape, num_rows, has_bias, has_norms, has_angles });
            }
        }
    }
}

fn check(kernels: &Kernels, case: Case) {
    let gpu = kernels.gpu();
    let Case { shape, num_rows, .. } = case;
    let HeadShape { element, num_heads, num_kv_heads, head_dim } = shape;
    let (width, plane) = (shape.num_all() * head_dim, num_kv_heads * head_dim);
    let qkv = rounded(element, &numbers(num_rows * width, 1));
    let bias = numbers(width, 2);
    let (query_norm, key_norm) = (numbers(head_dim, 3), numbers(head_dim, 4));
    let frequencies: Vec<f32> =
        (0..head_dim / 2).map(|pair| 10_000_f32.powf(-2.0 * pair as f32 / head_dim as f32)).collect();
    let mut angles = vec![0.0; NUM_POSITIONS * head_dim];
    for (position, angles) in angles.chunks_mut(head_dim).enumerate() {
        rope_angles(&frequencies, 1.0, position, angles);
    }
    // One slot, to each row its own token of it, from the last position down; one row pads the batch.
    let positions: Vec<i32> = (0..num_rows).map(|row| (NUM_POSITIONS - 1 - row) as i32).collect();
    let padding = (num_rows > 2).then_some(2);

    let token_bytes = NUM_LAYERS * 2 * plane * 2;
    let layout = KvLayout { token_stride: token_bytes as u64, keys_offset: (LAYER * 2 * plane * 2) as u64 };
    let (bias_there, angles_there) = (plain(gpu, &bias), plain(gpu, &angles));
    let (query_norm_there, key_norm_there) = (plain(gpu, &query_norm), plain(gpu, &key_norm));
    let positions_there = plain(gpu, &positions);
    let run = || {
        let qkv = Guarded::of(gpu, &to_bytes(element, &qkv));
        let slot = Guarded::of(gpu, &vec![0; NUM_POSITIONS * token_bytes]);
        let addresses: Vec<u64> =
            (0..num_rows).map(|row| if Some(row) == padding { 0 } else { slot.view().address() }).collect();
        let addresses = plain(gpu, &addresses);
        let given = |is_given: bool, view| -> Option<View<'_>> { is_given.then_some(view) };
        kernels
            .heads(&Heads {
                shape,
                layout,
                num_rows,
                qkv: qkv.view(),
                bias: given(case.has_bias, bias_there.view()),
                query_norm: given(case.has_norms, query_norm_there.view()),
                key_norm: given(case.has_norms, key_norm_there.view()),
                angles: given(case.has_angles, angles_there.view()),
                positions: positions_there.view(),
                // SAFETY: memory of the test for every row's tokens, which lives until it has waited for the launches.
                slots: unsafe { Slots::vouched_for(addresses.view()) },
                epsilon: EPSILON,
            })
            .unwrap();
        (qkv.elements(element), slot.elements(element))
    };
    let (got, kept) = run();

    // The reference: what the CPU does to the same rows.
    let mut wanted = qkv.clone();
    let mut wanted_kept = vec![0.0; kept.len()];
    for (row, wanted) in wanted.chunks_mut(width).enumerate() {
        if case.has_bias {
            wanted.iter_mut().zip(&bias).for_each(|(x, bias)| *x += bias);
        }
        let (queries, rest) = wanted.split_at_mut(num_heads * head_dim);
        let (keys, values) = rest.split_at_mut(plane);
        if case.has_norms {
            rms_norm_in_place(queries, &query_norm, EPSILON);
            rms_norm_in_place(keys, &key_norm, EPSILON);
        }
        if case.has_angles {
            let angles = &angles[positions[row] as usize * head_dim..][..head_dim];
            rotate(angles, queries);
            rotate(angles, keys);
        }
        if Some(row) != padding {
            let at = positions[row] as usize * token_bytes / 2 + LAYER * 2 * plane;
            wanted_kept[at..][..plane].copy_from_slice(keys);
            wanted_kept[at + plane..][..plane].copy_from_slice(values);
        }
    }
    for (row, (got, wanted)) in got.chunks(width).zip(wanted.chunks(width)).enumerate() {
        let queries = num_heads * head_dim;
        assert_close(&got[..queries], &wanted[..queries], tolerance(element), 1e-5);
        assert_eq!(
            got[queries..],
            qkv[row * width + queries..][..2 * plane],
            "keys and values stay as they were"
        );
    }
    assert_close(&kept, &wanted_kept, tolerance(element), 1e-5);
    assert_eq!(run(), (got, kept), "again: {case:?}");
}

fn tolerance(element: Element) -> f32 {
    2.0 * rounding_error(element)
}
