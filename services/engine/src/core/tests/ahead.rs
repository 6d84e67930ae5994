//! Steps launched before the one before them is read.

use super::*;

fn ahead(num_pages: usize) -> Harness {
    Harness::on(MockRunner { num_ahead: 1, ..MockRunner::default() }, num_pages, core_config(16))
}

#[test]
fn the_next_step_is_launched_before_the_last_one_is_read() {
    let mut harness = ahead(64);
    let mut client = harness.send(max_tokens("a", 9), &[1, 2, 3]);
    harness.step();
    assert!(client.listen().tokens(0).is_empty(), "in flight");
    for num_read in 1..9 {
        harness.step();
        assert_eq!(client.listen().tokens(0).len(), num_read);
        assert_eq!(harness.core.flights.len(), 1);
    }
    // The last token is drawn by the ninth step: it was known that there is none after it.
    harness.run();
    assert_eq!(client.listen().tokens(0), alone(&[1, 2, 3], 0, 9).0);
    assert_eq!(harness.core.runner.num_steps, 9);
    harness.assert_nothing_is_left();
}

#[test]
fn who_ends_unforeseen_runs_once_more_in_vain_and_keeps_its_slot_until_then() {
    let mut harness = ahead(64);
    let (tokens, _) = alone(&[4, 2], 0, 3);
    let params = StoppingParams { stop_token_ids: vec![tokens[2].0], ..StoppingParams::default() };
    let mut client = harness.send(stopping("a", params), &[4, 2]);
    for _ in 0..4 {
        harness.step();
    }
    let load = harness.door.load();
    assert_eq!(client.listen().finishes()[0].reason, FinishReason::StopToken(tokens[2]));
    assert_eq!((load.num_running, load.kv.live_slots), (0, 1));
    harness.run();
    assert_eq!((client.listen().tokens(0), harness.core.runner.num_steps), (tokens[..3].to_vec(), 4));
    harness.assert_nothing_is_left();
}

#[test]
fn who_leaves_in_flight_is_told_what_it_frees_and_keeps_it_until_the_step_is_done() {
    let mut harness = ahead(64);
    let mut others = [("b", [7, 8, 9]), ("c", [9, 8, 7])]
        .map(|(id, prompt)| (harness.send(max_tokens(id, 20), &prompt), prompt));
    let mut client = harness.send(max_tokens("a", 20), &[1, 2, 3]);
    for _ in 0..3 {
        harness.step();
    }
    let aborted = harness.abort("a").unwrap();
    assert!(aborted.num_sequences == 1 && aborted.kv_bytes > 0);
    assert_eq!(client.listen().finishes()[0].reason, FinishReason::Aborted);
    // The step that the abort came with has brought the other one down.
    assert_eq!(harness.door.load().kv.live_slots, 2);
    harness.run();
    for (client, prompt) in &mut others {
        assert_eq!(client.listen().tokens(0), alone(prompt, 0, 20).0);
    }
    harness.assert_nothing_is_left();
}

#[test]
fn a_fault_in_flight_ends_everybody_with_a_reason() {
    for fault in [Fault::Error { step: 3 }, Fault::Short { step: 3 }] {
        let runner = MockRunner { num_ahead: 1, fault: Some(fault), ..MockRunner::default() };
        let mut harness = Harness::on(runner, 64, core_config(16));
        let _client = harness.send(max_tokens("a", 9), &[1, 2, 3]);
        let failed = (0..9).find_map(|_| harness.core.step().err()).unwrap();
        assert!(!failed.to_string().is_empty());
        assert_eq!(harness.core.runner.num_steps, 4);
    }
}
