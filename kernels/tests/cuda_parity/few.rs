//! Products of few rows with what stands before and behind them in a layer.

use fused_gpu::Output;
use fused_kernels::cuda::{
    Element, Few, FewInput, FewOutput, HeadShape, Heads, Kernels, KvLayout, MAX_FEW_ROWS, Slots,
};
use fused_kernels::{Activation, activate, activate_gated, linear, rms_norm, rope_angles, rotate};

use crate::device::{
    ELEMENTS, Guarded, elements, f32s, from_bytes, kernels, numbers, plain, relative_error, rounded,
    rounding_error, to_bytes,
};
use crate::products::pack;

const EPSILON: f32 = 1e-5;

/// A product's shape and rows; normed ones are as the residual stream has them, the others as a kernel before
/// has rounded them.
#[derive(Clone, Copy, Debug)]
struct Case {
    element: Element,
    num_rows: usize,
    num_inputs: usize,
    num_outputs: usize,
    is_normed: bool,
    has_bias: bool,
}

impl Case {
    fn x(&self) -> Vec<f32> {
        let x = numbers(self.num_rows * self.num_inputs, 1);
        if self.is_normed { x.iter().map(|x| 3.0 * x + 0.5).collect() } else { rounded(self.element, &x) }
    }

    fn weight(&self) -> Vec<f32> {
        rounded(self.element, &numbers(self.num_outputs * self.num_inputs, 2))
    }

    fn norm(&self) -> Vec<f32> {
        numbers(self.num_inputs, 3)
    }

    fn bias(&self) -> Vec<f32> {
        numbers(self.num_outputs, 4)
    }

    /// The product by the CPU, with the norm before it and the bias behind.
    fn product(&self) -> Vec<f32> {
        let mut x = self.x();
        if self.is_normed {
            let mut normed = vec![0.0; x.len()];
            let rows = x.chunks(self.num_inputs).zip(normed.chunks_mut(self.num_inputs));
            rows.for_each(|(x, normed)| rms_norm(x, &self.norm(), EPSILON, normed));
            x = normed;
        }
        let matrix = pack(self.element, &self.weight(), self.num_outputs, self.num_inputs);
        let mut y = vec![0.0; self.num_rows * self.num_outputs];
        linear(&x, &matrix, self.has_bias.then_some(self.bias()).as_deref(), &mut y);
        y
    }

    /// Runs it with an output.
    fn run(&self, kernels: &Kernels, output: FewOutput<'_>) {
        let gpu = kernels.gpu();
        let x = match self.is_normed {
            true => plain(gpu, &self.x()),
            false => elements(gpu, self.element, &self.x()),
        };
        let (norm, weight) = (plain(gpu, &self.norm()), elements(gpu, self.element, &self.weight()));
        let input = match self.is_normed {
            true => FewInput::RmsNorm { residual: x.view(), weight: norm.view(), epsilon: EPSILON },
            false => FewInput::Plain(x.view()),
        };
        let &Self { element, num_rows, num_inputs, num_outputs, .. } = self;
        let few = Few { element, num_rows, num_inputs, num_outputs, input, weight: weight.view(), output };
        kernels.multiply_few(&few).unwrap();
    }

    /// Sums in another order, and one rounding where the result has one.
    #[track_caller]
    fn check(&self, got: &[f32], wanted: &[f32], is_rounded: bool) {
        let allowed = if is_rounded { 2.0 * f64::from(rounding_error(self.element)) } else { 1e-5 };
        let error = relative_error(got, wanted);
        assert!(error <= allowed, "{self:?}: off by {error}, {allowed} allowed");
    }
}

fn cases(sizes: &[(usize, usize)]) -> impl Iterator<Item = Case> {
    let sizes = sizes.iter().flat_map(|&size| ELEMENTS.map(|element| (size, element)));
    let sizes = sizes.flat_map(|size| (1..=MAX_FEW_ROWS).map(move |num_rows| (size, num_rows)));
    let sizes = sizes.flat_map(|size| [(false, false), (true, true), (true, false)].map(|has| (size, has)));
    sizes.map(|((((num_outputs, num_inputs), element), num_rows), (is_normed, has_bias))| Case {
        element,
        num_rows,
        num_inputs,
        num_outputs,
        is_normed,
        has_bias,
    })
}

#[test]
fn normed_rows_are_multiplied() {
    let Some(kernels) = kernels() else { return };
    let gpu = kernels.gpu();
    for case in cases(&[(8, 8), (13, 24), (1003, 768), (515, 4096), (24, 14_336)]) {
        let case = Case { is_normed: true, has_bias: false, ..case };
        let wanted = case.product();
        let before = numbers(wanted.len(), 5);
        for output in [Output::Element, Output::F32, Output::AddToF32] {
            let run = || {
                let out = match output {
                    Output::Element => Guarded::new(gpu, 2 * wanted.len()),
                    Output::F32 => Guarded::new(gpu, 4 * wanted.len()),
                    Output::AddToF32 => Guarded::of(gpu, bytemuck::cast_slice(&before)),
                };
                case.run(&kernels, FewOutput::Kept(output, out.view()));
                out.bytes()
            };
            let bytes = run();
            assert!(run() == bytes, "again: {case:?}");
            match output {
                Output::Element => case.check(&from_bytes(case.element, &bytes), &wanted, true),
                Output::F32 => case.check(&f32s(&bytes), &wanted, false),
                Output::AddToF32 => {
                    let sums: Vec<f32> =
                        wanted.iter().zip(&before).map(|(wanted, before)| wanted + before).collect();
                    case.check(&f32s(&bytes), &sums, false);
                }
            }
        }
    }
}

#[test]
fn products_are_activated() {
    let Some(kernels) = kernels() else { return };
    let gpu = kernels.gpu();
    for case in cases(&[(16, 8), (48, 40), (1040, 768), (512, 2048), (32, 14_336)]) {
        let product = case.product();
        let activations = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];
        for (activation, is_gated) in activations.into_iter().flat_map(|f| [(f, false), (f, true)]) {
            let mut wanted = product.clone();
            if is_gated {
                wanted.truncate(product.len() / 2);
                activate_gated(activation, &product, case.num_outputs / 2, &mut wanted);
            } else {
                activate(activation, &mut wanted);
            }
            let bias = plain(gpu, &case.bias());
            let run = || {
                let out = Guarded::new(gpu, 2 * wanted.len());
                let bias = case.has_bias.then(|| bias.view());
                case.run(&kernels, FewOutput::Activated { activation, is_gated, bias, out: out.view() });
                out.bytes()
            };
            let bytes = run();
            assert!(run() == bytes, "again: {case:?}");
            case.check(&from_bytes(case.element, &bytes), &wanted, true);
        }
    }
}

#[test]
fn products_become_heads() {
    const NUM_POSITIONS: usize = 40;
    const NUM_LAYERS: usize = 3;
    const LAYER: usize = 1;
    let Some(kernels) = kernels() else { return };
    let gpu = kernels.gpu();
    for (num_heads, num_kv_heads, head_dim) in [(8, 4, 32), (4, 1, 128), (12, 12, 64), (3, 1, 96), (1, 1, 8)]
    {
        let num_all = num_heads + 2 * num_kv_heads;
        for case in cases(&[(num_all * head_dim, 64), (num_all * head_dim, 2056)]) {
            let (width, plane) = (case.num_outputs, num_kv_heads * head_dim);
            let has_angles = case.num_rows != 2;
            let mut angles = vec![0.0; NUM_POSITIONS * head_dim];
            let frequencies: Vec<f32> =
                (0..head_dim / 2).map(|pair| 10_000_f32.powf(-2.0 * pair as f32 / head_dim as f32)).collect();
            for (position, angles) in angles.chunks_mut(head_dim).enumerate() {
                rope_angles(&frequencies, 1.0, position, angles);
            }
            // One slot, to each row its own token of it; the third row pads the batch.
            let positions: Vec<i32> =
                (0..case.num_rows).map(|row| (NUM_POSITIONS - 1 - row) as i32).collect();
            let token_bytes = NUM_LAYERS * 2 * plane * 2;
            let (angles_there, bias) = (plain(gpu, &angles), plain(gpu, &case.bias()));
            let positions_there = plain(gpu, &positions);
            let before = numbers(case.num_rows * width, 6);
            let run = || {
                let qkv = Guarded::of(gpu, &to_bytes(case.element, &before));
                let slot = Guarded::of(gpu, &vec![0; NUM_POSITIONS * token_bytes]);
                let slots: Vec<u64> =
                    (0..case.num_rows).map(|row| if row == 2 { 0 } else { slot.view().address() }).collect();
                let slots = plain(gpu, &slots);
                let heads = Heads {
                    shape: HeadShape { element: case.element, num_heads, num_kv_heads, head_dim },
                    layout: KvLayout {
                        token_stride: token_bytes as u64,
                        keys_offset: (LAYER * 2 * plane * 2) as u64,
                    },
                    num_rows: case.num_rows,
                    qkv: qkv.view(),
                    bias: case.has_bias.then(|| bias.view()),
                    query_norm: None,
                    key_norm: None,
                    angles: has_angles.then(|| angles_there.view()),
                    positions: positions_there.view(),
                    // SAFETY: memory of the test for every row's tokens, which lives until it has waited for the launches.
                    slots: unsafe { Slots::vouched_for(slots.view()) },
                    epsilon: 0.0,
                };
                case.run(&kernels, FewOutput::Heads(heads));
                (qkv.elements(case.element), slot.elements(case.element))
            };
            let (got, kept) = run();
            assert!(run() == (got.clone(), kept.clone()), "again: {case:?}");

            let mut wanted = case.product();
            let mut wanted_kept = vec![0.0; kept.len()];
            for (row, wanted) in wanted.chunks_mut(width).enumerate() {
                let (turned, values) = wanted.split_at_mut(num_heads * head_dim + plane);
                if has_angles {
                    rotate(&angles[positions[row] as usize * head_dim..][..head_dim], turned);
                }
                if row != 2 {
                    let at = positions[row] as usize * token_bytes / 2 + LAYER * 2 * plane;
                    wanted_kept[at..][..plane].copy_from_slice(&turned[num_heads * head_dim..]);
                    wanted_kept[at + plane..][..plane].copy_from_slice(values);
                }
                let before = rounded(case.element, &before[row * width..][..width]);
                wanted[num_heads * head_dim..].copy_from_slice(&before[num_heads * head_dim..]);
            }
            case.check(&got, &wanted, true);
            case.check(&kept, &wanted_kept, true);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(kernels) = kernels() else { return };
    let bytes = kernels.gpu().alloc_zeroed(1 << 16).unwrap();
    let fits = Few {
        element: Element::Bf16,
        num_rows: 4,
        num_inputs: 64,
        num_outputs: 64,
        input: FewInput::Plain(bytes.view()),
        weight: bytes.view(),
        output: FewOutput::Kept(Output::F32, bytes.view()),
    };
    for wrong in [
        Few { num_rows: 0, ..fits },
        Few { num_rows: MAX_FEW_ROWS + 1, ..fits },
        Few { num_inputs: 63, ..fits },
        Few { num_outputs: 7, ..fits },
        Few { weight: bytes.slice(0..8191).unwrap(), ..fits },
        Few { input: FewInput::Plain(bytes.slice(0..511).unwrap()), ..fits },
        Few { output: FewOutput::Kept(Output::F32, bytes.slice(0..1023).unwrap()), ..fits },
    ] {
        let error = kernels.multiply_few(&wrong).unwrap_err().to_string();
        assert!(error.contains("few"), "{error}");
    }
}
