use super::*;

const PLAIN: RowSampling = RowSampling {
    random: 0,
    occurrences: 0,
    biases: 0,
    num_occurrences: 0,
    num_biases: 0,
    temperature: 1.0,
    top_p: 0.0,
    log_min_p: 0.0,
    top_k: 0,
    repetition_penalty: 0.0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    flags: 0,
    token: 0,
    num_top: 0,
    batch_row: 0,
    changed_place: 0,
    changed_token: 0,
    changed_count: 0,
};

/// How often each token is drawn with evenly spread numbers.
fn shares(logits: &[f32], row: RowSampling) -> Vec<f64> {
    let num_draws = 1 << 14;
    let mut shares = vec![0.0; logits.len()];
    for draw_idx in 0..num_draws {
        let row = RowSampling { random: draw_idx * (u64::MAX / num_draws + 1), ..row };
        let token = draw(&mut logits.to_vec(), &row, &Adjustments::default());
        shares[token as usize] += 1.0 / num_draws as f64;
    }
    shares
}

fn tenths() -> [f32; 4] {
    [0.1, 0.2, 0.3, 0.4].map(f32::ln)
}

#[test]
fn draws_follow_the_distribution() {
    for (share, expected) in shares(&tenths(), PLAIN).iter().zip([0.1, 0.2, 0.3, 0.4]) {
        assert!((share - expected).abs() < 1e-3, "{share} for {expected}");
    }
    let cold = RowSampling { temperature: 0.5, ..PLAIN };
    for (share, expected) in shares(&tenths(), cold).iter().zip([1.0, 4.0, 9.0, 16.0]) {
        assert!((share - expected / 30.0).abs() < 1e-3, "{share} for {}", expected / 30.0);
    }
}

#[test]
fn filters_cut_where_they_say() {
    let drawn = |row| -> Vec<usize> {
        let shares = shares(&tenths(), row);
        (0..4).filter(|&id| shares[id] > 0.0).collect()
    };
    assert_eq!(drawn(RowSampling { top_k: 2, ..PLAIN }), [2, 3]);
    assert_eq!(drawn(RowSampling { top_k: 9, top_p: 1.0, ..PLAIN }), [0, 1, 2, 3]);
    assert_eq!(drawn(RowSampling { top_p: 0.65, ..PLAIN }), [2, 3]);
    assert_eq!(drawn(RowSampling { top_p: 0.75, ..PLAIN }), [1, 2, 3]);
    assert_eq!(drawn(RowSampling { top_p: 1e-30, ..PLAIN }), [3]);
    assert_eq!(drawn(RowSampling { log_min_p: RowSampling::log_min_p(0.45), ..PLAIN }), [1, 2, 3]);
    assert_eq!(drawn(RowSampling { log_min_p: RowSampling::log_min_p(1.0), ..PLAIN }), [3]);
    // top_p counts within what top_k left, 4/7 of which is the likeliest token alone, and top_k within what min_p left.
    assert_eq!(drawn(RowSampling { top_k: 2, top_p: 0.55, ..PLAIN }), [3]);
    assert_eq!(drawn(RowSampling { top_k: 3, log_min_p: RowSampling::log_min_p(0.6), ..PLAIN }), [2, 3]);
}

#[test]
fn equals_of_the_last_kept_are_kept() {
    let logits = [1.0, 0.0, 1.0, 1.0];
    for row in [RowSampling { top_k: 1, ..PLAIN }, RowSampling { top_p: 0.1, ..PLAIN }] {
        let shares = shares(&logits, row);
        assert!(shares[1] == 0.0 && [0, 2, 3].iter().all(|&id| (shares[id] - 1.0 / 3.0).abs() < 1e-3));
    }
}

#[test]
fn without_a_temperature_the_likeliest_is_drawn() {
    let row = RowSampling { random: u64::MAX, ..RowSampling::default() };
    assert_eq!(draw(&mut [0.0, 3.0, f32::NAN, 3.0], &row, &Adjustments::default()), 1);
    assert_eq!(draw(&mut [-0.0, 0.0], &row, &Adjustments::default()), 0);
}

#[test]
fn a_row_of_nonsense_draws_a_token_all_the_same() {
    for temperature in [0.0, 1.0, f32::MIN_POSITIVE / 8.0, f32::NAN, f32::INFINITY] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN] {
            let row = RowSampling {
                temperature,
                random: u64::MAX,
                top_k: 3,
                top_p: 0.5,
                log_min_p: RowSampling::log_min_p(0.5),
                ..PLAIN
            };
            assert!(draw(&mut [value; 5], &row, &Adjustments::default()) < 5);
            assert!(draw(&mut [value, 0.0], &row, &Adjustments::default()) < 2);
        }
    }
}

#[test]
fn keys_have_the_order_of_the_logits() {
    let logits = [f32::NEG_INFINITY, f32::MIN, -1.0, -1e-40, 0.0, 1e-40, 1.0, f32::MAX, f32::INFINITY];
    assert!(logits.is_sorted_by_key(|&logit| key(logit)));
    assert!(logits.windows(2).all(|pair| key(pair[0]) < key(pair[1])));
    assert_eq!((key(f32::NAN), key(-0.0)), (key(f32::NEG_INFINITY), key(0.0)));
}
