use fused_gpu::{Output, Product, Products, Shape};
use fused_kernels::cuda::{Element, Embed, Error, Norm};

use crate::device::{Guarded, elements, kernels, numbers, plain};

/// Recorded, the same calls give the same bits, and follow what stands in their buffers.
#[test]
fn a_graph_does_what_its_calls_do() {
    let Some(kernels) = kernels() else { return };
    let gpu = kernels.gpu();
    let mut products = Products::new(gpu).unwrap();
    let (element, width, vocabulary, num_rows) = (Element::Bf16, 256, 100, 3);
    let embedding = elements(gpu, element, &numbers(vocabulary * width, 1));
    let weight = plain(gpu, &numbers(width, 2));
    let tokens = plain(gpu, &[5_i32, 7, 99]);
    let residual = Guarded::new(gpu, 4 * num_rows * width);
    let normed = Guarded::new(gpu, 2 * num_rows * width);
    let logits = Guarded::new(gpu, 4 * num_rows * vocabulary);
    let shape = Shape { num_inputs: width, num_outputs: vocabulary, element, output: Output::F32 };
    let mut work = || -> Result<(), Error> {
        kernels.embed(&Embed {
            element,
            width,
            num_rows,
            embedding: embedding.view(),
            learned: None,
            tokens: tokens.view(),
            drawn: tokens.view(),
            positions: tokens.view(),
            residual: residual.view(),
        })?;
        kernels.norm(&Norm {
            element,
            width,
            num_rows,
            residual: residual.view(),
            added: None,
            weight: weight.view(),
            bias: None,
            rows: None,
            out: normed.view(),
            epsilon: 1e-5,
        })?;
        let product =
            Product { shape, num_rows, x: normed.view(), weight: embedding.view(), out: logits.view() };
        Ok(products.multiply(&product)?)
    };
    // cuBLASLt loads a kernel when it is first used, which now and then fails in a recording while other threads use the driver.
    work().unwrap();
    gpu.fill(logits.view(), 0xA5).unwrap();
    let graph_first = gpu.capture(&mut work).unwrap();
    assert!(logits.bytes().iter().all(|&byte| byte == 0xA5), "a recording does nothing");
    graph_first.launch().unwrap();
    let recorded = logits.bytes();
    gpu.fill(logits.view(), 0).unwrap();
    work().unwrap();
    assert!(logits.bytes() == recorded, "recorded first");

    tokens.write(0, bytemuck::cast_slice(&[0_i32, 1, 2])).unwrap();
    work().unwrap();
    let direct = logits.bytes();
    assert!(direct != recorded);
    gpu.fill(logits.view(), 0).unwrap();
    graph_first.launch().unwrap();
    assert!(logits.bytes() == direct, "other tokens in the same graph");
}

/// A recording that fails leaves the stream as it was.
#[test]
fn a_failed_recording_is_over() {
    let Some(kernels) = kernels() else { return };
    let gpu = kernels.gpu();
    let buffer = gpu.alloc_zeroed(16).unwrap();
    let failed = gpu.capture(|| {
        gpu.fill(buffer.view(), 1)?;
        Err::<(), _>(fused_gpu::Error::Illegal("enough".to_owned()))
    });
    assert_eq!(failed.unwrap_err().to_string(), "enough");
    let waits = gpu.capture(|| buffer.write(0, &[1]));
    assert!(waits.unwrap_err().to_string().contains("part of a graph"));
    let mut bytes = [9; 16];
    buffer.read(&mut bytes).unwrap();
    assert_eq!(bytes, [0; 16]);
}
