use fused_kernels::cuda::{Activate, Embed, Norm};
use fused_kernels::{Activation, activate, activate_gated, layer_norm, rms_norm};

use crate::device::{
    ELEMENTS, Guarded, assert_close, elements, kernels, numbers, plain, rounded, rounding_error, to_bytes,
};

#[test]
fn embedding() {
    let Some(kernels) = kernels() else { return };
    let gpu = kernels.gpu();
    for element in ELEMENTS {
        for (num_rows, width, vocabulary) in [(1, 8, 1), (3, 24, 5), (257, 2048, 1000), (5, 768, 50_257)] {
            let table = rounded(element, &numbers(vocabulary * width, 1));
            let learned_table = numbers(7 * width, 2);
            let token = |row: usize| row * 7919 % vocabulary;
            let position = |row: usize| row % 7;
            let mut tokens: Vec<i32> = (0..num_rows).map(|row| token(row) as i32).collect();
            let mut wanted_tokens: Vec<usize> = (0..num_rows).map(token).collect();
            // What the step before drew, an id that no vocabulary has among it.
            let drawn_tokens = [token(3) as i32, -1];
            let drawn = plain(gpu, &drawn_tokens);
            if num_rows > 4 {
                // Ids that no vocabulary has count as the last.
                (tokens[1], wanted_tokens[1]) = (!0, token(3));
                (tokens[2], wanted_tokens[2]) = (i32::MAX, vocabulary - 1);
                (tokens[3], wanted_tokens[3]) = (!1, vocabulary - 1);
                (tokens[4], wanted_tokens[4]) = (!7, vocabulary - 1);
            }
            let positions: Vec<i32> = (0..num_rows).map(|row| position(row) as i32).collect();
            let (embedding, learned) = (elements(gpu, element, &table), plain(gpu, &learned_table));
            let positions = plain(gpu, &positions);
            for has_learned in [false, true] {
                let run = || {
                    let residual = Guarded::new(gpu, 4 * num_rows * width);
                    let tokens = plain(gpu, &tokens);
                    let embed = Embed {
                        element,
                        width,
                        num_rows,
                        embedding: embedding.view(),
                        learned: has_learned.then(|| learned.view()),
                        tokens: tokens.view(),
                        drawn: drawn.view(),
                        positions: positions.view(),
                        residual: residual.view(),
                    };
                    kernels.embed(&embed).unwrap();
                    residual.f32s()
                };
                let wanted: Vec<f32> = (0..num_rows)
                    .flat_map(|row| {
                        let from_table = table[wanted_tokens[row] * width..][..width].iter();
                        let from_learned = learned_table[position(row) * width..][..width].iter();
                        from_table
                            .zip(from_learned)
                            .map(move |(&token, &learned)| if has_learned { token + learned } else { token })
                            .collect::<Vec<_>>()
                    })
                    .collect();
                assert_eq!(run(), wanted, "{element:?} {num_rows} {width} {has_learned}");
            }
        }
    }
}

#[test]
fn norms() {
    let Some(kernels) = kernels() else { return };
    let gpu = kernels.gpu();
    let epsilon = 1e-5;
    for element in ELEMENTS {
        for (num_rows, width) in [(1, 4), (3, 12), (2, 1000), (300, 768), (17, 4096), (5, 16_384)] {
            // A mean far from 0, which a sum of squares alone would drown in.
            let x: Vec<f32> = numbers(num_rows * width, 1).iter().map(|x| 3.0 * x + 2.0).collect();
            let (weight, bias) = (numbers(width, 2), numbers(width, 3));
            let added = numbers(width, 4);
            let (weight_there, bias_there, added_there) =
                (plain(gpu, &weight), plain(gpu, &bias), plain(gpu, &added));
            // The last row first, and one row twice nowhere.
            let order: Vec<i32> = (0..num_rows as i32).rev().step_by(2).collect();
            let order_there = plain(gpu, &order);
            for (is_layer_norm, is_added, is_ordered) in [
                (false, false, false),
                (true, false, false),
                (false, true, true),
                (true, true, false),
                (true, false, true),
            ] {
                let mut residual: Vec<f32> = x.clone();
                let rows: Vec<usize> = match is_ordered {
                    true => order.iter().map(|&row| row as usize).collect(),
                    false => (0..num_rows).collect(),
                };
                if is_added {
                    for &row in &rows {
                        residual[row * width..][..width]
                            .iter_mut()
                            .zip(&added)
                            .for_each(|(x, added)| *x += added);
                    }
                }
                let gathered: Vec<f32> =
                    rows.iter().flat_map(|&row| residual[row * width..][..width].iter().copied()).collect();
                let mut wanted = vec![0.0; gathered.len()];
                match is_layer_norm {
                    true => layer_norm(&gathered, &weight, &bias, epsilon, &mut wanted),
                    false => rms_norm(&gathered, &weight, epsilon, &mut wanted),
                }
                let run = || {
                    let residual = Guarded::of(gpu, bytemuck::cast_slice(&x));
                    let out = Guarded::new(gpu, 2 * rows.len() * width);
                    let norm = Norm {
                        element,
                        width,
                        num_rows: rows.len(),
                        residual: residual.view(),
                        added: is_added.then(|| added_there.view()),
                        weight: weight_there.view(),
                        bias: is_layer_norm.then(|| bias_there.view()),
                        rows: is_ordered.then(|| order_there.view()),
                        out: out.view(),
                        epsilon,
                    };
                    kernels.norm(&norm).unwrap();
                    (residual.f32s(), out.elements(element))
                };
                let (left, out) = run();
                assert_eq!(left, residual, "the residual, {width}");
                assert_close(&out, &wanted, 2.0 * rounding_error(element), 2e-5);
                assert_eq!(run(), (left, out), "again");
            }
        }
    }
}

#[test]
fn activations() {
    let Some(kernels) = kernels() else { return };
    let gpu = kernels.gpu();
    for element in ELEMENTS {
        // The last: more rows than a launch has blocks in its second direction.
        for (num_rows, width) in [(1, 8), (3, 40), (65, 3072), (2, 14_336), (70_000, 8)] {
            for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
                for (is_gated, has_bias) in [(false, false), (false, true), (true, false), (true, true)] {
                    let num_inputs = if is_gated { 2 * width } else { width };
                    let x: Vec<f32> = numbers(num_rows * num_inputs, 5).iter().map(|x| 8.0 * x).collect();
                    let x = rounded(element, &x);
                    let bias = numbers(num_inputs, 6);
                    let mut biased = x.clone();
                    if has_bias {
                        for row in biased.chunks_mut(num_inputs) {
                            row.iter_mut().zip(&bias).for_each(|(x, bias)| *x += bias);
                        }
                    }
                    let wanted = match is_gated {
                        true => {
                            let mut wanted = vec![0.0; num_rows * width];
                            activate_gated(activation, &biased, width, &mut wanted);
                            wanted
                        }
                        false => {
                            activate(activation, &mut biased);
                            biased
                        }
                    };
                    let (x, bias) = (elements(gpu, element, &x), plain(gpu, &bias));
                    let run = || {
                        let out = Guarded::new(gpu, 2 * num_rows * width);
                        let activate = Activate {
                            activation,
                            is_gated,
                            element,
                            width,
                            num_rows,
                            x: x.view(),
                            bias: has_bias.then(|| bias.view()),
                            out: out.view(),
                        };
                        kernels.activate(&activate).unwrap();
                        out.elements(element)
                    };
                    let out = run();
                    assert_close(&out, &wanted, 2.0 * rounding_error(element), 1e-5);
                    assert_eq!(run(), out, "again");
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_launched() {
    let Some(kernels) = kernels() else { return };
    let gpu = kernels.gpu();
    let element = ELEMENTS[0];
    let bytes = gpu.upload(&to_bytes(element, &numbers(8 * 64, 1))).unwrap();
    let fits = Activate {
        activation: Activation::Relu,
        is_gated: false,
        element,
        width: 64,
        num_rows: 8,
        x: bytes.view(),
        bias: None,
        out: bytes.view(),
    };
    kernels.activate(&fits).unwrap();
    for wrong in [
        Activate { num_rows: 9, ..fits },
        Activate { num_rows: 0, ..fits },
        Activate { num_rows: 1 << 20, width: 0, ..fits },
        Activate { width: 60, ..fits },
        Activate { is_gated: true, ..fits },
        Activate { num_rows: usize::MAX, ..fits },
        Activate { num_rows: 7, x: bytes.slice(2..1024).unwrap(), ..fits },
        Activate { bias: Some(bytes.slice(0..128).unwrap()), ..fits },
    ] {
        let error = kernels.activate(&wrong).unwrap_err();
        assert!(error.to_string().starts_with("the kernel activation cannot run"), "{error}");
    }
    gpu.synchronize().unwrap();
}
