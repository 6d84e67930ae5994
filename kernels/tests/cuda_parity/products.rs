use fused_gpu::{Output, Product, Products, Shape};
use fused_kernels::cuda::{Element, Few, MAX_FEW_ROWS};
use fused_kernels::{Elements, Matrix, linear};
use half::{bf16, f16};

use crate::device::{
    ELEMENTS, Guarded, elements, f32s, from_bytes, kernels, numbers, relative_error, rounded, rounding_error,
};

/// Rows, outputs, inputs: those of models, large and small, and some of none.
const SIZES: [(usize, usize, usize); 12] = [
    (1, 8, 8),
    (3, 40, 24),
    (1, 6144, 4096),
    (17, 768, 3072),
    (5, 50_257, 768),
    (300, 2304, 768),
    (64, 1000, 256),
    (513, 512, 1024),
    (2, 9, 16),
    (1, 4096, 14336),
    (3, 1023, 768),
    (4, 50_257, 64),
];

#[test]
fn products_agree_with_the_reference() {
    let Some(kernels) = kernels() else { return };
    let gpu = kernels.gpu();
    let mut products = Products::new(gpu).unwrap();
    for element in ELEMENTS {
        for (num_rows, num_outputs, num_inputs) in SIZES {
            let x = rounded(element, &numbers(num_rows * num_inputs, 1));
            let weight = rounded(element, &numbers(num_outputs * num_inputs, 2));
            let before = numbers(num_rows * num_outputs, 3);
            let matrix = pack(element, &weight, num_outputs, num_inputs);
            let mut wanted = vec![0.0; num_rows * num_outputs];
            linear(&x, &matrix, None, &mut wanted);
            let (x, weight) = (elements(gpu, element, &x), elements(gpu, element, &weight));
            for output in [Output::Element, Output::F32, Output::AddToF32] {
                let shape = Shape { num_inputs, num_outputs, element, output };
                let mut run = |is_few: bool| {
                    let out = match output {
                        Output::AddToF32 => Guarded::of(gpu, bytemuck::cast_slice(&before)),
                        _ => Guarded::new(gpu, shape.out_bytes(num_rows).unwrap()),
                    };
                    let product =
                        Product { shape, num_rows, x: x.view(), weight: weight.view(), out: out.view() };
                    if is_few {
                        kernels.multiply_few(&Few::from(&product)).unwrap();
                    } else {
                        products.multiply(&product).unwrap();
                    }
                    out.bytes()
                };
                let wanted: Vec<f32> = match output {
                    Output::AddToF32 => {
                        wanted.iter().zip(&before).map(|(sum, before)| sum + before).collect()
                    }
                    _ => wanted.clone(),
                };
                // By the library, and by our own kernel where there are few rows.
                for is_few in [false, true].into_iter().take(1 + usize::from(num_rows <= MAX_FEW_ROWS)) {
                    let bytes = run(is_few);
                    // Sums of f32 in another order; the result is rounded once.
                    let (got, allowed) = match output {
                        Output::Element => {
                            (from_bytes(element, &bytes), 2.0 * f64::from(rounding_error(element)))
                        }
                        _ => (f32s(&bytes), 1e-5),
                    };
                    let error = relative_error(&got, &wanted);
                    assert!(error <= allowed, "{num_rows} rows of {shape:?}, few: {is_few}: off by {error}");
                    assert!(run(is_few) == bytes, "again: {num_rows} rows of {shape:?}, few: {is_few}");
                }
            }
        }
    }
}

/// A bucket's algorithm serves all its numbers of rows, whichever came first.
#[test]
fn every_number_of_rows_of_a_bucket_has_its_product() {
    let Some(kernels) = kernels() else { return };
    let gpu = kernels.gpu();
    let mut products = Products::new(gpu).unwrap();
    let (num_outputs, num_inputs, element) = (264, 136, Element::Bf16);
    let x = rounded(element, &numbers(130 * num_inputs, 1));
    let weight = rounded(element, &numbers(num_outputs * num_inputs, 2));
    let mut wanted = vec![0.0; 130 * num_outputs];
    linear(&x, &pack(element, &weight, num_outputs, num_inputs), None, &mut wanted);
    let (x, weight) = (elements(gpu, element, &x), elements(gpu, element, &weight));
    let shape = Shape { num_inputs, num_outputs, element, output: Output::F32 };
    for num_rows in [128, 65, 66, 100, 127, 1, 33, 64, 7, 6, 5, 8, 130] {
        let out = Guarded::new(gpu, shape.out_bytes(num_rows).unwrap());
        products
            .multiply(&Product { shape, num_rows, x: x.view(), weight: weight.view(), out: out.view() })
            .unwrap();
        let error = relative_error(&out.f32s(), &wanted[..num_rows * num_outputs]);
        assert!(error <= 1e-5, "{num_rows} rows: off by {error}");
    }
}

#[test]
fn what_is_too_short_is_refused() {
    let Some(kernels) = kernels() else { return };
    let gpu = kernels.gpu();
    let mut products = Products::new(gpu).unwrap();
    let bytes = gpu.alloc_zeroed(1 << 16).unwrap();
    let shape = Shape { num_inputs: 64, num_outputs: 64, element: Element::Bf16, output: Output::F32 };
    let fits = Product { shape, num_rows: 4, x: bytes.view(), weight: bytes.view(), out: bytes.view() };
    for wrong in [
        Product { num_rows: 513, ..fits },
        Product { num_rows: usize::MAX, ..fits },
        Product { shape: Shape { num_inputs: 0, ..shape }, ..fits },
        Product { x: bytes.slice(0..511).unwrap(), ..fits },
        Product { out: bytes.slice(8..1 << 15).unwrap(), ..fits },
    ] {
        let error = products.multiply(&wrong).unwrap_err().to_string();
        assert!(error.contains("product of"), "{error}");
    }
    products.multiply(&Product { num_rows: 0, ..fits }).unwrap();
    let elsewhere = fused_gpu::Gpu::open(0).unwrap();
    assert!(Products::new(&elsewhere).unwrap().multiply(&fits).is_err());
}

pub(crate) fn pack(element: Element, weight: &[f32], num_outputs: usize, num_inputs: usize) -> Matrix {
    match element {
        Element::Bf16 => {
            let weight: Vec<bf16> = weight.iter().map(|&weight| bf16::from_f32(weight)).collect();
            Matrix::pack(Elements::Bf16(&weight), num_outputs, num_inputs).unwrap()
        }
        Element::F16 => {
            let weight: Vec<f16> = weight.iter().map(|&weight| f16::from_f32(weight)).collect();
            Matrix::pack(Elements::F16(&weight), num_outputs, num_inputs).unwrap()
        }
    }
}

/// Whole prompts of the longest contexts are: the last rows are what they are alone.
#[test]
fn a_product_of_more_numbers_than_an_i32_counts() {
    let Some(kernels) = kernels() else { return };
    let gpu = kernels.gpu();
    let (num_rows, num_last) = (70_000, 100);
    let shape =
        Shape { num_inputs: 64, num_outputs: 32_768, element: Element::Bf16, output: Output::Element };
    assert!(num_rows * shape.num_outputs > i32::MAX as usize);
    let x = elements(gpu, shape.element, &numbers(num_rows * shape.num_inputs, 1));
    let weight = elements(gpu, shape.element, &numbers(shape.num_outputs * shape.num_inputs, 2));
    let mut products = Products::new(gpu).unwrap();
    let mut last_of = |num_rows: usize, first_row: usize| {
        let x = x.slice(2 * shape.num_inputs * first_row..x.len()).unwrap();
        let out = gpu.alloc(shape.out_bytes(num_rows).unwrap()).unwrap();
        products.multiply(&Product { shape, num_rows, x, weight: weight.view(), out: out.view() }).unwrap();
        let mut bytes = vec![0; shape.out_bytes(num_last).unwrap()];
        out.slice(out.len() - bytes.len()..out.len()).unwrap().read(&mut bytes).unwrap();
        from_bytes(shape.element, &bytes)
    };
    let (of_all, alone) = (last_of(num_rows, 0), last_of(num_last, num_rows - num_last));
    assert!(relative_error(&of_all, &alone) < f64::from(2.0 * rounding_error(shape.element)));
}
