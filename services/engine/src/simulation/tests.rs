use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn config() -> SimulationConfig {
    SimulationConfig {
        engine: Config {
            max_model_len: Some(8192),
            max_num_sequences: 16,
            token_budget: 512,
            kv_cache_bytes: Some(4 << 30),
            page_bytes: Some(2 << 20),
            max_waiting_requests: 100,
            target_time_to_first_token: None,
            ..Config::default()
        },
        cost: CostModel::llama_8b_on_h200(),
        seed: 1,
        max_tokens: None,
    }
}

fn arrival(at_ms: u64, num_prompt: usize, num_output: usize) -> Arrival {
    Arrival { at: Duration::from_millis(at_ms), prompt: Prompt::unique(num_prompt), num_output, priority: 0 }
}

#[test]
fn one_request_takes_what_its_steps_take() {
    let config = config();
    let outcome = simulate(&config, &Workload::new(vec![arrival(250, 700, 3)])).unwrap();
    let part = |context_len, num_tokens, is_sampled| Part { context_len, num_tokens, is_sampled };
    let blocked = |idx: usize| outcome.steps[idx].blocked;
    let took: Vec<_> = [part(0, 512, false), part(512, 188, true), part(700, 1, true), part(701, 1, true)]
        .into_iter()
        .enumerate()
        .map(|(idx, part)| config.cost.step_time([part]) + blocked(idx))
        .collect();
    let [request] = &outcome.requests[..] else { panic!("one request") };
    assert_eq!(outcome.steps.iter().map(|step| step.took).collect::<Vec<_>>(), took);
    assert_eq!(request.first_scheduled, Some(Duration::from_millis(250)));
    assert_eq!(request.time_to_first_token(), Some(took[0] + took[1]));
    let gaps: Vec<_> = request.inter_token_us.iter().map(|us| u128::from(*us)).collect();
    assert_eq!(gaps, [took[2].as_micros(), took[3].as_micros()]);
    assert_eq!(request.end_to_end(), Some(took.iter().sum()));
    assert_eq!((request.num_output(), request.num_preemptions, request.num_cached), (3, 0, 0));
    assert_eq!(outcome.duration(), Duration::from_millis(250) + took.iter().sum::<Duration>());
    let tokens: Vec<_> = outcome.steps.iter().map(|step| (step.num_prefill, step.num_decode)).collect();
    assert_eq!(tokens, [(512, 0), (188, 0), (0, 1), (0, 1)]);
}

#[test]
fn whoever_cannot_be_served_is_told_and_harms_nobody() {
    let mut config = config();
    config.engine.max_waiting_requests = 2;
    let arrivals = vec![arrival(0, 100, 2), arrival(0, 8192, 1), arrival(0, 10, 1), arrival(0, 10, 1)];
    let outcome = simulate(&config, &Workload::new(arrivals)).unwrap();
    let codes: Vec<_> = outcome
        .requests
        .iter()
        .map(|request| request.error.as_ref().map(|error| error.code().name()))
        .collect();
    assert_eq!(codes, [None, Some("context_length_exceeded"), None, Some("queue_full")]);
    assert_eq!(outcome.requests[0].num_output(), 2);
    assert_eq!(outcome.requests[1].num_output(), 0);
}

#[test]
fn settings_that_cannot_hold_are_named() {
    let refused = |change: fn(&mut Config)| {
        let mut config = config();
        change(&mut config.engine);
        match simulate(&config, &Workload::default()) {
            Err(Error::Engine(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert!(refused(|engine| engine.page_bytes = None).starts_with("page_bytes must be given"));
    assert!(refused(|engine| engine.token_budget = 15).starts_with("token_budget is 15"));
    assert!(refused(|engine| engine.kv_cache_bytes = Some(1 << 20)).contains("no memory"));
}

/// Requests of equal size, more than the machine can serve.
fn overload(num_requests: u64, num_prompt: usize, num_output: usize) -> Workload {
    Workload::new((0..num_requests).map(|idx| arrival(idx * 20, num_prompt, num_output)).collect())
}

#[test]
fn whoever_is_accepted_is_served_within_the_target_and_the_queue_is_used() {
    // Sixteen slots turn over every 0.8 s; fifty requests come in a second.
    let mut config = config();
    config.engine.max_waiting_requests = 10_000;
    config.engine.target_time_to_first_token = Some(Duration::from_secs(3));
    for max_tokens in [None, Some(4000)] {
        config.max_tokens = max_tokens;
        let outcome = simulate(&config, &overload(800, 100, 150)).unwrap();
        let mut waits: Vec<_> =
            outcome.requests.iter().filter_map(RequestOutcome::time_to_first_token).collect();
        waits.sort_unstable();
        let (num_accepted, p99) = (waits.len(), waits[waits.len() * 99 / 100].as_secs_f64());
        assert!(p99 <= 1.3 * 3.0, "{p99}");
        // Served beyond the arrivals: those that were waiting then, no fewer than fit into four fifths of the target.
        let last = outcome.requests.iter().filter_map(|request| request.first_token).max().unwrap();
        assert!(last.as_secs_f64() >= 800.0 * 0.02 + 0.8 * 3.0, "{last:?}, {num_accepted}");
        let refused = outcome.requests.iter().filter_map(|request| request.error.as_ref());
        assert!(refused.clone().count() > 200);
        assert!(refused.clone().all(|error| error.retry_after_s().is_some()));
    }
}

#[test]
fn short_prompts_do_not_wait_for_a_long_one() {
    let mut config = config();
    config.engine = Config {
        max_model_len: Some(131_072),
        max_num_sequences: 64,
        token_budget: 2048,
        kv_cache_bytes: Some(40 << 30),
        ..config.engine
    };
    let short = (0..40).map(|idx| arrival(1 + idx, 200, 20));
    let alone = simulate(&config, &Workload::new([arrival(0, 100_000, 2)].into())).unwrap();
    let outcome = simulate(&config, &Workload::new(short.chain([arrival(0, 100_000, 2)]).collect())).unwrap();
    let wait = |request: &RequestOutcome| request.time_to_first_token().unwrap();
    let (long, short) = outcome.requests.split_first().unwrap();
    let slowest = short.iter().map(wait).max().unwrap();
    assert!(slowest < Duration::from_millis(400), "{slowest:?}");
    assert!(wait(long) < wait(&alone.requests[0]).mul_f64(1.2), "{:?}", wait(long));
    // A step late in the long prompt takes no longer than one at its beginning, for everybody beside it.
    let longest = alone.steps.iter().map(|step| step.took).max().unwrap();
    assert!(longest < alone.steps[0].took.mul_f64(1.5), "{longest:?}");
}

fn workload() -> impl Strategy<Value = Workload> {
    let arrival =
        (0..2000u64, 1..3000usize, 1..60usize).prop_map(|(at, prompt, output)| arrival(at, prompt, output));
    prop::collection::vec(arrival, 1..40).prop_map(Workload::new)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn everybody_gets_all_tokens_and_the_same_ones_again(workload in workload(), num_pages in 512..700u64) {
        // Memory for little more than one sequence of the greatest length, so that some have to give way.
        let mut config = config();
        config.engine.kv_cache_bytes = Some(num_pages << 21);
        let outcome = simulate(&config, &workload).unwrap();
        prop_assert_eq!(outcome.requests.len(), workload.arrivals().len());
        let mut num_output = 0;
        for (request, arrival) in outcome.requests.iter().zip(workload.arrivals()) {
            prop_assert!(request.error.is_none(), "{:?}", request.error);
            prop_assert_eq!((request.num_output(), request.arrived), (arrival.num_output, arrival.at));
            prop_assert!(request.first_scheduled.unwrap() >= request.arrived);
            prop_assert!(request.first_token.unwrap() > request.first_scheduled.unwrap());
            num_output += request.num_output();
        }
        // Every token but the last of each is computed once, and again after giving way.
        let num_computed: usize = outcome.steps.iter().map(|step| step.num_prefill + step.num_decode).sum();
        let num_prompt: usize = workload.arrivals().iter().map(|arrival| arrival.prompt.num_tokens).sum();
        let once = num_prompt + num_output - outcome.requests.len();
        let gave_way = outcome.requests.iter().any(|request| request.num_preemptions > 0);
        prop_assert!(num_computed == once || gave_way && num_computed > once);
        for steps in outcome.steps.windows(2) {
            prop_assert!(steps[0].started + steps[0].took <= steps[1].started);
        }
        for step in &outcome.steps {
            prop_assert_eq!(step.kv.mapped_bytes + step.kv.parked_bytes + step.kv.free_bytes, step.kv.total_bytes);
            prop_assert!(step.kv.unused_bytes <= step.kv.mapped_bytes);
        }
        let again = simulate(&config, &workload).unwrap();
        prop_assert_eq!(&again.steps, &outcome.steps);
        for (again, request) in again.requests.iter().zip(&outcome.requests) {
            prop_assert_eq!(&again.inter_token_us, &request.inter_token_us);
            prop_assert_eq!(again.first_token, request.first_token);
        }
    }
}
