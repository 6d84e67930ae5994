use fused_gpu::Buffer;
use fused_kernels::cuda::{Kernels, MAX_TOP, Sample, SampledRows};
use fused_kernels::{Adjustments, Bias, Occurrence, RowSampling, draw, logprobs};

use crate::device::{Guarded, kernels, numbers, plain};

/// A row and what is asked of it.
#[derive(Clone, Default)]
struct Case {
    logits: Vec<f32>,
    sampling: RowSampling,
    occurrences: Vec<Occurrence>,
    biases: Vec<Bias>,
    latest: Option<u32>,
}

/// What the GPU made of a row.
#[derive(Debug, PartialEq)]
struct Sampled {
    token: u32,
    /// As bits: what is not written is no number that equals itself.
    logprobs: Vec<u32>,
    logits: Vec<u32>,
}

const MAX_TOLD: usize = 20;

#[test]
fn draws_from_few_tokens_are_the_references() {
    draws_are_the_references(&[1, 2, 3, 5, 1000, 4099]);
}

#[test]
fn draws_from_many_tokens_are_the_references() {
    draws_are_the_references(&[50_257, 50_259, 128_256, 151_936]);
}

/// Rows of odd vocabularies begin at every distance from a multiple of 16 bytes.
fn draws_are_the_references(vocabularies: &[usize]) {
    let Some(kernels) = kernels() else { return };
    for &vocabulary in vocabularies {
        let cases = cases(vocabulary);
        let sampled = run(&kernels, &cases, MAX_TOLD);
        for (row, (case, sampled)) in cases.iter().zip(&sampled).enumerate() {
            check(case, sampled, MAX_TOLD, &format!("row {row} of {vocabulary}: {:?}", case.sampling));
        }
        assert!(run(&kernels, &cases, MAX_TOLD) == sampled, "again, {vocabulary}");
    }
}

#[test]
fn up_to_a_thousand_likeliest_are_told() {
    let Some(kernels) = kernels() else { return };
    for vocabulary in [5, 1024, 50_257] {
        let told = [0, 1, 20, MAX_TOP as u32, MAX_TOP as u32 + 1];
        let cases: Vec<Case> = kinds_of_logits(vocabulary)
            .into_iter()
            .flat_map(|logits| told.map(|num_top| (logits.clone(), num_top)))
            .map(|(logits, num_top)| {
                let flags = RowSampling::WANTS_LOGPROBS | RowSampling::IS_GIVEN;
                let token = num_top * 7 % vocabulary as u32;
                Case {
                    logits,
                    sampling: RowSampling { flags, token, num_top, ..temperature(1.0) },
                    ..Case::default()
                }
            })
            .collect();
        for (row, (case, sampled)) in cases.iter().zip(run(&kernels, &cases, MAX_TOP)).enumerate() {
            check(case, &sampled, MAX_TOP, &format!("row {row} of {vocabulary}"));
        }
    }
}

/// Many draws from one row are spread as its probabilities are.
#[test]
fn draws_follow_the_distribution() {
    let Some(kernels) = kernels() else { return };
    let num_rows = 4096;
    let logits: Vec<f32> = (0..40).map(|id| ((id % 4 + 1) as f32).ln()).collect();
    let cases: Vec<Case> = (0..num_rows)
        .map(|row| {
            let random = row * (u64::MAX / num_rows + 1);
            Case {
                logits: logits.clone(),
                sampling: RowSampling { random, ..temperature(1.0) },
                ..Case::default()
            }
        })
        .collect();
    let mut counts = [0; 40];
    run(&kernels, &cases, 0).iter().for_each(|sampled| counts[sampled.token as usize] += 1);
    for (id, &count) in counts.iter().enumerate() {
        let wanted = num_rows as f64 * (id % 4 + 1) as f64 / 100.0;
        assert!((f64::from(count) - wanted).abs() < 2.0, "{count} of token {id} for {wanted}");
    }
}

#[test]
fn a_recorded_launch_does_what_its_rows_say() {
    let Some(kernels) = kernels() else { return };
    let gpu = kernels.gpu();
    let vocabulary = 1003;
    let logits = numbers(2 * vocabulary, 3);
    let (logits_there, last_tokens) = (plain(gpu, &logits), plain(gpu, &[0_i32]));
    let (tokens, told) = (Guarded::new(gpu, 8), Guarded::new(gpu, 8));
    let mut rows = [RowSampling::default(), temperature(0.5)];
    let rows_there = plain(gpu, &rows);
    let sample = Sample {
        vocabulary,
        num_rows: 2,
        logits: logits_there.view(),
        // SAFETY: the rows' lists, where they have any, are memory of the test, which lives as long as the launches.
        rows: unsafe { SampledRows::vouched_for(rows_there.view()) },
        last_tokens: last_tokens.view(),
        tokens: tokens.view(),
        logprobs: told.view(),
        max_top: 0,
    };
    let graph = gpu.capture(|| kernels.sample(&sample)).unwrap();
    for random in [0, u64::MAX / 3, u64::MAX] {
        rows[1].random = random;
        rows_there.write(0, bytemuck::cast_slice(&rows)).unwrap();
        graph.launch().unwrap();
        let wanted: Vec<u32> = logits
            .chunks(vocabulary)
            .zip(&rows)
            .map(|(logits, row)| draw(&mut logits.to_vec(), row, &Adjustments::default()))
            .collect();
        assert_eq!(bytemuck::cast_slice::<u8, u32>(&tokens.bytes()), wanted);
    }
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_launched() {
    let Some(kernels) = kernels() else { return };
    let gpu = kernels.gpu();
    let bytes = gpu.alloc_zeroed(4096).unwrap();
    // SAFETY: rows of zeros have no lists.
    let rows = |len| unsafe { SampledRows::vouched_for(bytes.slice(0..len).unwrap()) };
    let fits = Sample {
        vocabulary: 100,
        num_rows: 2,
        logits: bytes.view(),
        rows: rows(160),
        last_tokens: bytes.view(),
        tokens: bytes.view(),
        logprobs: bytes.view(),
        max_top: 20,
    };
    for wrong in [
        Sample { num_rows: 0, ..fits },
        Sample { num_rows: 3, ..fits },
        Sample { vocabulary: 0, ..fits },
        Sample { vocabulary: 513, ..fits },
        Sample { vocabulary: (1 << 20) + 1, ..fits },
        Sample { rows: rows(159), ..fits },
        Sample { max_top: 512, ..fits },
        Sample { max_top: MAX_TOP + 1, ..fits },
        Sample { last_tokens: bytes.slice(0..0).unwrap(), ..fits },
        Sample { tokens: bytes.slice(0..7).unwrap(), ..fits },
    ] {
        let error = kernels.sample(&wrong).unwrap_err();
        assert!(error.to_string().starts_with("the kernel sample cannot run"), "{error}");
    }
}

fn temperature(temperature: f32) -> RowSampling {
    RowSampling { temperature, ..RowSampling::default() }
}

/// Every way to be sampled, of every kind of logits.
fn cases(vocabulary: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, logits) in kinds_of_logits(vocabulary).into_iter().enumerate() {
        for (way, case) in ways(vocabulary, kind as u64).into_iter().enumerate() {
            let random = (kind as u64 * 1000 + way as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            cases.push(Case {
                logits: logits.clone(),
                sampling: RowSampling { random, ..case.sampling },
                ..case
            });
        }
    }
    cases
}

fn kinds_of_logits(vocabulary: usize) -> Vec<Vec<f32>> {
    let uniform = numbers(vocabulary, 1);
    // Roughly normal, as a model's are, some of them far up.
    let mut normal = vec![0.0; vocabulary];
    for seed in 2..6 {
        normal.iter_mut().zip(numbers(vocabulary, seed)).for_each(|(sum, number)| *sum += 2.0 * number);
    }
    let mut peaked = normal.clone();
    peaked.iter_mut().step_by(vocabulary / 7 + 1).enumerate().for_each(|(nth, x)| *x = 30.0 - nth as f32);
    let of = |f: &dyn Fn(usize) -> f32| (0..vocabulary).map(f).collect::<Vec<f32>>();
    vec![
        uniform.clone(),
        normal.clone(),
        peaked,
        // Ties: all of them, and many, more of one value than are sorted.
        of(&|_| -0.75),
        of(&|id| (4.0 * uniform[id]).round() / 2.0),
        // Beyond where weights end.
        of(&|id| 1000.0 * uniform[id]),
        // Nonsense here and there, and nothing else.
        of(&|id| match id % 5 {
            0 => f32::NAN,
            1 => f32::NEG_INFINITY,
            _ => normal[id],
        }),
        of(&|id| if id % 4 == 3 { f32::INFINITY } else { normal[id] }),
        of(&|_| f32::NAN),
        of(&|_| f32::NEG_INFINITY),
    ]
}

fn ways(vocabulary: usize, seed: u64) -> Vec<Case> {
    let of = |sampling| Case { sampling, ..Case::default() };
    let token = |nth: u64| ((nth * 7919 + seed) % vocabulary as u64) as u32;
    let occurrence = |token, count| Occurrence { token, count, ..Occurrence::default() };
    let bias = |token, bias| Bias { token, bias, ..Bias::default() };
    // Each token once, and one that no vocabulary has.
    let mut occurrences: Vec<Occurrence> =
        (0..500.min(vocabulary as u64)).map(|nth| occurrence(nth as u32, nth as u32 % 4)).collect();
    occurrences.push(occurrence(u32::MAX, 1));
    let mut biases: Vec<Bias> = (0..vocabulary as u32)
        .step_by(vocabulary / 100 + 1)
        .map(|id| bias(id, (id % 7) as f32 - 3.0))
        .collect();
    biases.iter_mut().step_by(3).for_each(|bias| bias.bias = f32::NEG_INFINITY);
    biases.push(bias(u32::MAX, 1.0));
    let penalties = RowSampling {
        repetition_penalty: 1.3,
        presence_penalty: 0.4,
        frequency_penalty: 0.7,
        ..temperature(0.9)
    };
    let told = |num_top, sampling: RowSampling| RowSampling {
        flags: sampling.flags | RowSampling::WANTS_LOGPROBS,
        num_top,
        ..sampling
    };
    let follows = RowSampling { flags: RowSampling::FOLLOWS, ..penalties };
    // Of the list on the device the first entry is another one.
    let changes = |sampling: RowSampling| RowSampling {
        flags: sampling.flags | RowSampling::CHANGES,
        changed_place: 0,
        changed_token: 0,
        changed_count: 0,
        ..sampling
    };
    let all = RowSampling { top_k: 40, top_p: 0.95, log_min_p: RowSampling::log_min_p(0.01), ..follows };
    vec![
        of(RowSampling::default()),
        of(temperature(0.7)),
        of(temperature(1.0)),
        of(temperature(5.0)),
        of(RowSampling { log_min_p: RowSampling::log_min_p(0.1), ..temperature(1.0) }),
        of(RowSampling { top_k: 1, ..temperature(1.0) }),
        of(RowSampling { top_k: 50, ..temperature(1.0) }),
        of(RowSampling { top_k: 3000, ..temperature(1.0) }),
        of(RowSampling { top_k: u32::MAX, ..temperature(1.0) }),
        of(RowSampling { log_min_p: RowSampling::log_min_p(0.5), ..temperature(1e-40) }),
        of(RowSampling { top_k: 30, ..temperature(0.3) }),
        of(RowSampling { top_p: 0.9, ..temperature(0.2) }),
        of(RowSampling { top_p: 1e-9, ..temperature(1.0) }),
        of(RowSampling { top_p: 0.5, ..temperature(1.0) }),
        of(RowSampling { top_p: 0.9, ..temperature(1.0) }),
        of(RowSampling { top_p: 0.999, ..temperature(1.5) }),
        of(RowSampling {
            top_k: 100,
            top_p: 0.9,
            log_min_p: RowSampling::log_min_p(0.02),
            ..temperature(1.2)
        }),
        of(told(5, temperature(0.8))),
        of(told(0, RowSampling::default())),
        of(RowSampling { temperature: 1e-40, top_p: 0.5, ..RowSampling::default() }),
        Case { occurrences: occurrences.clone(), ..of(penalties) },
        Case { occurrences: occurrences.clone(), ..of(changes(penalties)) },
        Case { occurrences: occurrences.clone(), latest: Some(0), ..of(changes(told(3, follows))) },
        Case { occurrences: occurrences.clone(), latest: Some(token(3)), ..of(follows) },
        Case { occurrences: occurrences.clone(), latest: Some(0), ..of(follows) },
        Case { latest: Some(token(1)), ..of(RowSampling { temperature: 0.0, ..told(2, follows) }) },
        Case { occurrences: occurrences.clone(), latest: Some(u32::MAX), ..of(told(1, follows)) },
        Case { biases: biases.clone(), ..of(RowSampling::default()) },
        Case { biases: biases.clone(), ..of(told(20, temperature(0.6))) },
        Case {
            occurrences: occurrences.clone(),
            biases: biases.clone(),
            latest: Some(token(9)),
            ..of(told(20, all))
        },
        // Lists mean nothing to a given token.
        Case {
            occurrences,
            biases,
            ..of(RowSampling {
                flags: RowSampling::IS_GIVEN | RowSampling::WANTS_LOGPROBS,
                token: token(5),
                num_top: 20,
                ..penalties
            })
        },
    ]
}

fn run(kernels: &Kernels, cases: &[Case], max_top: usize) -> Vec<Sampled> {
    let gpu = kernels.gpu();
    let vocabulary = cases[0].logits.len();
    let all: Vec<f32> = cases.iter().flat_map(|case| case.logits.iter().copied()).collect();
    let logits = Guarded::of(gpu, bytemuck::cast_slice(&all));
    // The last row of the batch is the first that is sampled.
    let last_tokens: Vec<i32> =
        cases.iter().rev().map(|case| case.latest.map_or(-1, |latest| latest as i32)).collect();
    let lists: Vec<[Guarded; 2]> = cases
        .iter()
        .map(|case| {
            let (mut occurrences, biases) = (case.occurrences.clone(), &case.biases[..]);
            if case.sampling.flags & RowSampling::CHANGES != 0 {
                let old = Occurrence { token: 5, count: 77, ..Occurrence::default() };
                occurrences[case.sampling.changed_place as usize] = old;
            }
            [
                Guarded::of(gpu, bytemuck::cast_slice(&occurrences)),
                Guarded::of(gpu, bytemuck::cast_slice(biases)),
            ]
        })
        .collect();
    let rows: Vec<RowSampling> = cases
        .iter()
        .zip(&lists)
        .enumerate()
        .map(|(row, (case, [occurrences, biases]))| RowSampling {
            occurrences: occurrences.view().address(),
            biases: biases.view().address(),
            num_occurrences: case.occurrences.len() as u32,
            num_biases: case.biases.len() as u32,
            batch_row: (cases.len() - 1 - row) as u32,
            ..case.sampling
        })
        .collect();
    let (rows, last_tokens): (Buffer, Buffer) = (plain(gpu, &rows), plain(gpu, &last_tokens));
    let row_words = 1 + 2 * max_top;
    let tokens = Guarded::new(gpu, 4 * cases.len());
    let told = Guarded::new(gpu, 4 * cases.len() * row_words);
    kernels
        .sample(&Sample {
            vocabulary,
            num_rows: cases.len(),
            logits: logits.view(),
            // SAFETY: the rows' lists, where they have any, are memory of the test, which lives as long as the launches.
            rows: unsafe { SampledRows::vouched_for(rows.view()) },
            last_tokens: last_tokens.view(),
            tokens: tokens.view(),
            logprobs: told.view(),
            max_top,
        })
        .unwrap();
    lists.iter().flatten().for_each(|list| drop(list.bytes()));
    let words = |bytes: Vec<u8>| -> Vec<u32> {
        bytes.as_chunks::<4>().0.iter().map(|&quad| u32::from_le_bytes(quad)).collect()
    };
    let (tokens, told, logits) = (words(tokens.bytes()), words(told.bytes()), words(logits.bytes()));
    let rows = told.chunks(row_words).zip(logits.chunks(vocabulary));
    tokens
        .into_iter()
        .zip(rows)
        .map(|(token, (logprobs, logits))| Sampled {
            token,
            logprobs: logprobs.to_vec(),
            logits: logits.to_vec(),
        })
        .collect()
}

#[track_caller]
fn check(case: &Case, sampled: &Sampled, max_top: usize, what: &str) {
    let flags = case.sampling.flags;
    let is_given = flags & RowSampling::IS_GIVEN != 0;
    let mut logits = case.logits.clone();
    let adjustments =
        Adjustments { occurrences: &case.occurrences, biases: &case.biases, latest: case.latest };
    let token = match is_given {
        true => case.sampling.token,
        false => draw(&mut logits, &case.sampling, &adjustments),
    };
    assert_eq!(sampled.token, token, "{what}");

    let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<u32>>();
    const UNWRITTEN: u32 = 0xa5a5_a5a5;
    if flags & RowSampling::WANTS_LOGPROBS == 0 {
        assert!(sampled.logprobs.iter().all(|&word| word == UNWRITTEN), "{what}");
        // What became of a NaN is not the same everywhere, only that it is one.
        let is_same = |(&got, wanted): (&u32, f32)| {
            got == wanted.to_bits() || (f32::from_bits(got).is_nan() && wanted.is_nan())
        };
        assert!(sampled.logits.iter().zip(logits).all(is_same), "{what}");
        return;
    }
    assert!(sampled.logits == bits(&case.logits), "the logits are as they were, {what}");
    let num_top = (case.sampling.num_top as usize).min(max_top);
    let (own, top) = logprobs(&case.logits, token, num_top);
    let is_close = |got: u32, wanted: f32| {
        let got = f32::from_bits(got);
        got == wanted || (got - wanted).abs() <= 1e-6 * wanted.abs().max(1.0)
    };
    assert!(is_close(sampled.logprobs[0], own), "{} for {own}, {what}", f32::from_bits(sampled.logprobs[0]));
    let (told, unwritten) = sampled.logprobs[1..].split_at(2 * top.len());
    for (pair, (token, logprob)) in told.chunks(2).zip(top) {
        assert_eq!(pair[0], token, "{what}");
        assert!(is_close(pair[1], logprob), "{} for {logprob}, {what}", f32::from_bits(pair[1]));
    }
    assert!(unwritten.iter().all(|&word| word == UNWRITTEN), "{what}");
}
