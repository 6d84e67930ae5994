//! Every way in which a request can end.

use fused_proto::common::v1::{LogprobParams, SamplingParams};

use super::*;

#[test]
fn a_request_runs_to_its_end() {
    let mut harness = Harness::new(64);
    let mut client = harness.send(max_tokens("a", 9), &[1, 2, 3]);
    harness.run();
    client.listen();
    let (tokens, reason) = alone(&[1, 2, 3], 0, 9);
    assert_eq!(client.tokens(0), tokens);
    assert!(matches!(client.heard[0], Event::Prompt { num_tokens: 3, num_cached: 0, logprobs: None }));
    assert_eq!((client.finishes()[0].reason, client.finishes()[0].num_tokens), (reason, 9));
    assert_eq!(client.ended, Some(None));
    harness.assert_nothing_is_left();
}

#[test]
fn a_prompt_in_chunks_gives_what_the_whole_gives() {
    let mut harness = Harness::new(64);
    let (mut client, mut prompt) = harness.start(max_tokens("a", 5)).unwrap();
    for chunk in [&[5, 6][..], &[], &[7, 8, 9]] {
        harness.prompt(&client, &mut prompt, chunk, false);
        harness.run();
        assert!(client.listen().heard.is_empty(), "nothing is drawn before the end is marked");
    }
    harness.prompt(&client, &mut prompt, &[], true);
    harness.run();
    assert_eq!(client.listen().tokens(0), alone(&[5, 6, 7, 8, 9], 0, 5).0);
    harness.assert_nothing_is_left();
}

#[test]
fn ending_tokens_end_and_are_told_as_such() {
    // The first token of this prompt, made a stop token.
    let (tokens, _) = alone(&[4, 2], 0, 3);
    let mut harness = Harness::new(64);
    let params = StoppingParams { stop_token_ids: vec![tokens[2].0], ..StoppingParams::default() };
    let mut client = harness.send(stopping("a", params.clone()), &[4, 2]);
    harness.run();
    let finish = client.listen().finishes()[0].clone();
    assert_eq!((finish.reason, finish.num_tokens), (FinishReason::StopToken(tokens[2]), 3));
    assert_eq!(client.tokens(0), tokens[..3]);
    let ends = client.heard.iter().filter_map(|event| match event {
        Event::Token { ends, .. } => Some(*ends),
        _ => None,
    });
    assert_eq!(ends.collect::<Vec<_>>(), [false, false, true]);
    // Neither is drawn before `min_tokens`.
    let params = StoppingParams { min_tokens: Some(20), max_tokens: Some(20), ..params };
    let mut client = harness.send(stopping("b", params), &[4, 2]);
    harness.run();
    client.listen();
    assert_eq!(client.tokens(0).len(), 20);
    assert!(!client.tokens(0).contains(&tokens[2]) && !client.tokens(0).contains(&EOS));
    harness.assert_nothing_is_left();
}

#[test]
fn end_of_sequence_ends_unless_ignored() {
    let prompt = (0..).find(|first| alone(&[*first], 0, 30).1 == FinishReason::Eos(EOS)).unwrap();
    let (tokens, _) = alone(&[prompt], 0, 30);
    let mut harness = Harness::new(64);
    let mut client = harness.send(max_tokens("a", 30), &[prompt]);
    let params = StoppingParams { max_tokens: Some(30), ignore_eos: Some(true), ..StoppingParams::default() };
    let mut ignoring = harness.send(stopping("b", params), &[prompt]);
    harness.run();
    assert_eq!(client.listen().tokens(0), tokens);
    assert_eq!(client.finishes()[0].reason, FinishReason::Eos(EOS));
    assert_eq!(client.finishes()[0].num_tokens, tokens.len());
    assert_eq!(ignoring.listen().tokens(0).len(), 30);
    assert!(ignoring.tokens(0).contains(&EOS));
}

#[test]
fn the_context_bounds_what_has_no_other_bound() {
    let mut harness = Harness::new(64);
    let params = StoppingParams { ignore_eos: Some(true), ..StoppingParams::default() };
    let mut client = harness.send(stopping("a", params), &[1, 2, 3]);
    harness.run();
    assert_eq!(client.listen().tokens(0).len(), MAX_MODEL_LEN - 3);
    assert_eq!(client.finishes()[0].reason, FinishReason::Length);
}

#[test]
fn no_tokens_at_all_means_the_prompt_alone() {
    let mut harness = Harness::new(64);
    let logprobs = Some(LogprobParams { num_prompt: Some(0), ..LogprobParams::default() });
    let opening = GenerateOpening { logprobs, ..max_tokens("a", 0) };
    let prompt: Vec<u32> = (0..MAX_MODEL_LEN as u32).collect();
    let mut client = harness.send(opening, &prompt);
    harness.run();
    client.listen();
    let [Event::Prompt { num_tokens: MAX_MODEL_LEN, logprobs: Some(logprobs), .. }, Event::Finish(finish)] =
        &client.heard[..]
    else {
        panic!("{:?}", client.heard);
    };
    assert_eq!((finish.reason, finish.num_tokens), (FinishReason::Length, 0));
    assert_eq!(logprobs.first, TokenId(0));
    // Computed in four chunks, each position once and with its own token.
    let positions: Vec<_> = logprobs.rest.iter().map(|l| (l.token.0, -l.logprob as u32)).collect();
    let expected: Vec<_> = (1..MAX_MODEL_LEN as u32).map(|position| (position, position)).collect();
    assert_eq!(positions, expected);
    harness.assert_nothing_is_left();
}

#[test]
fn prompt_logprobs_survive_chunks_and_giving_way() {
    let logprobs = Some(LogprobParams { num_prompt: Some(0), ..LogprobParams::default() });
    let config = core_config(3);
    let mut harness = Harness::with(16, config);
    // An old sequence needs the page that the new one's prompt, two tokens a step, holds half-way.
    let params = StoppingParams { max_tokens: Some(40), ignore_eos: Some(true), ..StoppingParams::default() };
    let old = harness.send(stopping("old", params), &[9; 10]);
    for _ in 0..28 {
        harness.step();
    }
    let (mut client, mut prompt) = harness.start(GenerateOpening { logprobs, ..max_tokens("a", 3) }).unwrap();
    let tokens: Vec<u32> = (10..32).collect();
    harness.prompt(&client, &mut prompt, &tokens[..7], false);
    harness.step();
    harness.prompt(&client, &mut prompt, &tokens[7..], true);
    harness.run();
    drop(old);
    client.listen();
    let Event::Prompt { num_tokens: 22, logprobs: Some(logprobs), .. } = &client.heard[0] else {
        panic!("{:?}", client.heard);
    };
    let positions: Vec<_> = logprobs.rest.iter().map(|l| (l.token.0, -l.logprob as u32)).collect();
    let expected: Vec<_> = (1..22).map(|position| (position + 10, position)).collect();
    assert_eq!(positions, expected);
    assert_eq!(client.tokens(0), alone(&tokens, 0, 3).0);
    assert!(client.finishes()[0].timings.num_preemptions > 0);
}

#[test]
fn who_gives_way_goes_on_as_if_nothing_had_been() {
    let mut harness = Harness::new(16);
    let prompts: Vec<Vec<u32>> = (0..4).map(|idx| vec![idx; 6]).collect();
    let params = StoppingParams { max_tokens: Some(40), ignore_eos: Some(true), ..StoppingParams::default() };
    let mut clients: Vec<_> = prompts
        .iter()
        .enumerate()
        .map(|(idx, prompt)| harness.send(stopping(&idx.to_string(), params.clone()), prompt))
        .collect();
    harness.run();
    let mut num_preemptions = 0;
    for (client, prompt) in clients.iter_mut().zip(&prompts) {
        let mut context: Vec<_> = prompt.iter().copied().map(TokenId).collect();
        for _ in 0..40 {
            context.push(next_token(&context, 0, &[]));
        }
        assert_eq!(client.listen().tokens(0), context[prompt.len()..]);
        num_preemptions += client.finishes()[0].timings.num_preemptions;
    }
    assert!(num_preemptions > 0, "four sequences of 46 tokens do not fit into 64");
    assert_eq!(clients[0].finishes()[0].timings.num_preemptions, 0, "the oldest never gives way");
    harness.assert_nothing_is_left();
}

#[test]
fn several_sequences_of_one_prompt() {
    let mut harness = Harness::new(64);
    let opening = GenerateOpening { num_sequences: Some(3), ..max_tokens("a", 6) };
    let mut client = harness.send(opening, &[1, 2, 3, 4]);
    harness.run();
    client.listen();
    for idx in 0..3 {
        assert_eq!(client.tokens(idx), alone(&[1, 2, 3, 4], idx, 6).0);
    }
    assert_eq!(client.finishes().len(), 3);
    let prompts = client.heard.iter().filter(|event| matches!(event, Event::Prompt { .. }));
    assert_eq!(prompts.count(), 1);
    harness.assert_nothing_is_left();
}

#[test]
fn no_sequence_overtakes_the_one_that_computes_the_prompts_logprobs() {
    // The others find the prompt computed, and what the first leaves of the budget is enough for them.
    let schedule = ChunkSchedule { high: 8, low: 8, max_tokens: 64, stages: 1 };
    let mut config = core_config(64);
    config.scheduler.chunks = ChunkSize::Schedule(schedule);
    let mut harness = Harness::with(64, config);
    let prompt: Vec<u32> = (0..40).collect();
    let before = harness.send(max_tokens("before", 1), &prompt);
    harness.run();
    drop(before);
    let logprobs = Some(LogprobParams { num_prompt: Some(0), ..LogprobParams::default() });
    let opening = GenerateOpening { num_sequences: Some(3), logprobs, ..max_tokens("a", 6) };
    let mut client = harness.send(opening, &prompt);
    harness.run();
    client.listen();
    let Event::Prompt { num_tokens: 40, logprobs: Some(logprobs), .. } = &client.heard[0] else {
        panic!("{:?}", client.heard);
    };
    let positions: Vec<_> = logprobs.rest.iter().map(|l| (l.token.0, -l.logprob as u32)).collect();
    let expected: Vec<_> = (1..40).map(|position| (position, position)).collect();
    assert_eq!(positions, expected);
    for idx in 0..3 {
        assert_eq!(client.tokens(idx), alone(&prompt, idx, 6).0);
    }
    harness.assert_nothing_is_left();
}

#[test]
fn a_prompt_is_refused_for_those_that_wait_before_it_and_not_for_itself() {
    let config = CoreConfig { max_wait: Some(Duration::from_secs(1)), ..core_config(16) };
    let mut harness = Harness::with(64, config);
    // Ten tokens a second.
    harness.core.prefill_rate.note(1000, Duration::from_secs(100));
    let (mut client, mut reader) = harness.start(max_tokens("long", 2)).unwrap();
    harness.prompt(&client, &mut reader, &(0..30).collect::<Vec<_>>(), false);
    harness.prompt(&client, &mut reader, &[50; 20], true);
    let (mut late, mut reader) = harness.start(max_tokens("late", 2)).unwrap();
    // As long as the first: a shorter one would not wait for that.
    harness.prompt(&late, &mut reader, &[60; 50], true);
    harness.run();
    assert_eq!(client.listen().ended, Some(None), "nobody was before it");
    assert_eq!(late.listen().failure(), Some(Code::QueueFull), "it would have waited for five seconds");
    harness.assert_nothing_is_left();
}

#[test]
fn prompts_of_one_request_are_not_refused_for_one_another() {
    let config = CoreConfig { max_wait: Some(Duration::from_secs(1)), ..core_config(16) };
    let mut harness = Harness::with(64, config);
    // Ten tokens a second: each of the six takes three seconds.
    harness.core.prefill_rate.note(1000, Duration::from_secs(100));
    let grouped = |id: &str, group: Option<&str>| GenerateOpening {
        group_id: group.map(str::to_owned),
        ..max_tokens(id, 2)
    };
    let mut clients = Vec::new();
    for idx in 0..6 {
        let (client, mut reader) = harness.start(grouped(&format!("prompt-{idx}"), Some("a"))).unwrap();
        harness.prompt(&client, &mut reader, &[70 + idx; 30], true);
        clients.push(client);
    }
    let (mut other, mut reader) = harness.start(grouped("other", Some("b"))).unwrap();
    harness.prompt(&other, &mut reader, &[60; 31], true);
    harness.run();
    for client in &mut clients {
        assert_eq!(client.listen().ended, Some(None));
    }
    assert_eq!(other.listen().failure(), Some(Code::QueueFull));
    harness.assert_nothing_is_left();
}

#[test]
fn an_abort_says_what_it_freed() {
    let mut harness = Harness::new(64);
    let opening = GenerateOpening { num_sequences: Some(2), ..max_tokens("a", 40) };
    let mut client = harness.send(opening, &[1; 9]);
    let (mut waiting, _) = harness.start(max_tokens("b", 40)).unwrap();
    harness.step();
    harness.step();
    let aborted = harness.abort("a").unwrap();
    assert_eq!(aborted.num_sequences, 2);
    // Ten tokens are three pages; what is mapped ahead was nobody's.
    assert_eq!(aborted.kv_bytes, 2 * 3 * 32);
    client.listen();
    assert_eq!(
        client.finishes().iter().map(|finish| finish.reason).collect::<Vec<_>>(),
        [FinishReason::Aborted; 2]
    );
    assert_eq!(client.ended, Some(None));
    assert_eq!(harness.abort("a"), None);
    assert_eq!(harness.abort("b"), Some(Aborted { num_sequences: 1, kv_bytes: 0 }));
    assert_eq!(waiting.listen().finishes().len(), 1);
    harness.assert_nothing_is_left();
}

#[test]
fn a_client_that_goes_is_noticed_before_the_next_step() {
    let mut harness = Harness::new(64);
    let client = harness.send(max_tokens("a", 40), &[1, 2, 3]);
    harness.step();
    assert_eq!(harness.door.load().kv.live_slots, 1);
    drop(client);
    assert_eq!(harness.step(), Progress::Idle(None));
    harness.assert_nothing_is_left();
}

#[test]
fn a_client_that_does_not_read_is_cancelled_alone() {
    let mut harness = Harness::with(64, CoreConfig { stream_buffer: 8, ..core_config(16) });
    let params = StoppingParams { max_tokens: Some(30), ignore_eos: Some(true), ..StoppingParams::default() };
    let mut slow = harness.send(stopping("slow", params.clone()), &[1]);
    let mut quick = harness.send(stopping("quick", params), &[1]);
    while harness.step() == Progress::Ran {
        quick.listen();
    }
    slow.listen();
    assert_eq!(slow.failure(), Some(Code::SlowReader));
    assert_eq!(slow.tokens(0).len(), 7, "what was in the buffer arrives");
    assert_eq!(quick.tokens(0).len(), 30);
    assert_eq!(quick.ended, Some(None));
    harness.assert_nothing_is_left();
}

#[test]
fn an_end_is_heard_whatever_the_buffer() {
    let params = StoppingParams { max_tokens: Some(7), ignore_eos: Some(true), ..StoppingParams::default() };
    let config = CoreConfig { stream_buffer: 8, ..core_config(16) };
    let mut harness = Harness::with(64, config);
    let mut complete = harness.send(stopping("complete", params), &[1]);
    let mut aborted = harness.send(max_tokens("aborted", 40), &[1]);
    // The prompt and seven tokens: nobody has read anything.
    for _ in 0..7 {
        harness.step();
    }
    assert_eq!(harness.abort("aborted").map(|aborted| aborted.num_sequences), Some(1));
    harness.run();
    for (client, reason) in [(&mut complete, FinishReason::Length), (&mut aborted, FinishReason::Aborted)] {
        client.listen();
        assert_eq!(client.ended, Some(None));
        assert_eq!((client.tokens(0).len(), client.finishes()[0].reason), (7, reason));
    }
    harness.assert_nothing_is_left();
}

#[test]
fn every_sequence_has_a_buffer_of_its_own() {
    let config = CoreConfig { stream_buffer: 8, ..core_config(16) };
    let mut harness = Harness::with(64, config);
    let params = StoppingParams { max_tokens: Some(7), ignore_eos: Some(true), ..StoppingParams::default() };
    let opening = GenerateOpening { num_sequences: Some(4), ..stopping("a", params) };
    let mut client = harness.send(opening, &[1]);
    harness.run();
    client.listen();
    assert_eq!((client.ended, client.finishes().len()), (Some(None), 4));
    assert!((0..4).all(|idx| client.tokens(idx).len() == 7));
    harness.assert_nothing_is_left();
}

#[test]
fn a_sequence_of_which_the_client_has_enough_ends_before_the_next_step() {
    for num_ahead in 0..2 {
        let runner = MockRunner { num_ahead, ..MockRunner::default() };
        let mut harness = Harness::on(runner, 64, core_config(16));
        let opening = GenerateOpening { num_sequences: Some(3), ..max_tokens("a", 20) };
        let mut client = harness.send(opening, &[1, 2, 3]);
        while client.listen().tokens(1).len() < 4 {
            harness.step();
        }
        assert!(harness.door.finish_sequence(client.number, 1));
        harness.step();
        assert_eq!(harness.door.load().num_running, 2, "its slot is free");
        // Once is enough, and others' numbers are nobody's.
        for (request, idx) in [(client.number, 1), (client.number, 9), (77, 0)] {
            assert!(harness.door.finish_sequence(request, idx));
        }
        harness.run();
        client.listen();
        let num_drawn = client.tokens(1).len();
        let finish = client.finishes().into_iter().find(|finish| finish.sequence_idx == 1).unwrap();
        assert_eq!((finish.reason, finish.num_tokens), (FinishReason::Enough, num_drawn));
        assert_eq!(num_drawn, 4, "what was in flight is nobody's");
        for idx in [0, 2] {
            assert_eq!(client.tokens(idx), alone(&[1, 2, 3], idx, 20).0);
        }
        assert_eq!((client.finishes().len(), client.ended), (3, Some(None)));
        harness.assert_nothing_is_left();
    }
}

#[test]
fn the_last_sequence_that_is_enough_ends_the_request() {
    let mut harness = Harness::new(64);
    // One more than run at once.
    let opening = GenerateOpening { num_sequences: Some(5), ..max_tokens("a", 40) };
    let mut client = harness.send(opening, &[1, 2, 3]);
    harness.step();
    harness.step();
    for idx in 0..5 {
        assert!(harness.door.finish_sequence(client.number, idx));
    }
    harness.run();
    assert_eq!((client.listen().finishes().len(), client.ended), (5, Some(None)));
    harness.assert_nothing_is_left();
}

#[test]
fn a_client_that_goes_before_it_is_known_costs_nothing() {
    let mut harness = Harness::new(64);
    let client = harness.send(max_tokens("a", 40), &[1, 2, 3]);
    drop(client);
    let mut other = harness.send(max_tokens("a", 3), &[4]);
    harness.run();
    assert_eq!(other.listen().ended, Some(None), "the id is free");
    assert_eq!(harness.core.runner.num_steps, 3, "the one that went has never run");
    harness.assert_nothing_is_left();
}

#[test]
fn penalties_count_the_prompt_and_each_sequences_own_output() {
    let mut harness = Harness::new(64);
    let sampling = SamplingParams { presence_penalty: Some(0.5), ..SamplingParams::default() };
    let params = StoppingParams { max_tokens: Some(9), ignore_eos: Some(true), ..StoppingParams::default() };
    let opening =
        GenerateOpening { num_sequences: Some(2), sampling: Some(sampling), ..stopping("a", params) };
    let (mut client, mut prompt) = harness.start(opening).unwrap();
    harness.prompt(&client, &mut prompt, &[7, 3], false);
    harness.step();
    harness.prompt(&client, &mut prompt, &[7, 5], true);
    while client.listen().finishes().is_empty() {
        let outputs = [0, 1].map(|idx| client.tokens(idx));
        harness.step();
        for (occurrences, output) in harness.core.runner.occurrences.iter().zip(&outputs) {
            let mut expected = BTreeMap::from([(7, 0), (3, 0), (5, 0)]);
            for token in output {
                *expected.entry(token.0).or_insert(0) += 1;
            }
            let num_listed = occurrences.len();
            let listed: BTreeMap<_, _> = occurrences.iter().copied().collect();
            assert_eq!((num_listed, listed), (expected.len(), expected));
        }
    }
    harness.run();
    harness.assert_nothing_is_left();
}

#[test]
fn deadlines_pass_while_waiting_and_while_running() {
    let mut harness = Harness::new(64);
    let timed = |id: &str, ms: u64| GenerateOpening { timeout_us: Some(ms * 1000), ..max_tokens(id, 40) };
    let mut running = harness.send(timed("running", 10), &[1, 2]);
    let (mut arriving, _) = harness.start(timed("arriving", 20)).unwrap();
    harness.step();
    harness.pass(Duration::from_millis(9));
    harness.step();
    assert_eq!(running.listen().ended, None);
    harness.pass(Duration::from_millis(1));
    assert_eq!(
        harness.step(),
        Progress::Idle(Some(Duration::from_millis(10))),
        "it sleeps until the next one"
    );
    assert_eq!(running.listen().failure(), Some(Code::DeadlineExceeded));
    harness.pass(Duration::from_millis(10));
    harness.step();
    assert_eq!(arriving.listen().failure(), Some(Code::DeadlineExceeded));
    harness.assert_nothing_is_left();
}

#[test]
fn timings_are_those_of_the_clock() {
    let mut harness = Harness::new(64);
    let params = StoppingParams { max_tokens: Some(3), ignore_eos: Some(true), ..StoppingParams::default() };
    let (mut client, mut prompt) = harness.start(stopping("a", params)).unwrap();
    harness.pass(Duration::from_millis(5));
    harness.prompt(&client, &mut prompt, &[1; 20], true);
    for _ in 0..4 {
        harness.step();
        harness.pass(Duration::from_millis(3));
    }
    let timings = client.listen().finishes()[0].timings;
    let ms = Duration::from_millis;
    assert_eq!((timings.queue, timings.prefill, timings.decode), (ms(5), ms(3), ms(6)));
}

#[test]
fn a_prompt_that_does_not_come_on_keeps_nobody_out_and_goes_on_when_it_does() {
    let mut harness = Harness::new(64);
    let ids: Vec<String> = (0..NUM_SLOTS).map(|idx| format!("slow {idx}")).collect();
    let mut slow: Vec<_> = ids.iter().map(|id| harness.start(max_tokens(id, 5)).unwrap()).collect();
    for (client, prompt) in &mut slow {
        harness.prompt(client, prompt, &[5, 6, 7], false);
    }
    harness.run();
    assert_eq!(harness.door.load().kv.live_slots, NUM_SLOTS);
    assert_eq!(harness.door.queue.available_permits(), 4, "they may have to wait again");
    let mut whole = harness.send(max_tokens("whole", 5), &[1, 2]);
    harness.run();
    assert_eq!(whole.listen().tokens(0), alone(&[1, 2], 0, 5).0);
    for (client, prompt) in &mut slow {
        harness.prompt(client, prompt, &[8], true);
    }
    harness.run();
    let mut num_preemptions = 0;
    for (client, _) in &mut slow {
        assert_eq!(client.listen().tokens(0), alone(&[5, 6, 7, 8], 0, 5).0);
        num_preemptions += client.finishes()[0].timings.num_preemptions;
    }
    assert_eq!(num_preemptions, 1);
    harness.assert_nothing_is_left();
}

#[test]
fn memory_that_cannot_be_had_is_one_requests_misfortune() {
    let mut harness = Harness::new(64);
    // A machine with three pages, twelve tokens, for a pool of sixteen.
    let layout = *harness.core.kv.layout();
    let memory = SimulatedMemory::with_contents(32, 3 * 32).unwrap();
    harness.core.kv = KvCache::new(memory, layout, mock_size(16 * 32)).unwrap();
    let mut large = harness.send(max_tokens("large", 2), &[1; 13]);
    let mut small = harness.send(max_tokens("small", 2), &[1; 3]);
    harness.run();
    assert_eq!(large.listen().failure(), Some(Code::QueueFull), "the engine itself is not lost");
    assert_eq!(small.listen().ended, Some(None));
    harness.assert_nothing_is_left();
}

#[test]
fn an_id_in_use_is_refused_and_free_again_afterwards() {
    let mut harness = Harness::new(64);
    let mut first = harness.send(max_tokens("a", 3), &[1]);
    let mut second = harness.send(max_tokens("a", 3), &[2]);
    harness.run();
    assert_eq!(first.listen().ended, Some(None));
    assert_eq!(second.listen().failure(), Some(Code::InvalidArgument));
    let mut third = harness.send(max_tokens("a", 3), &[2]);
    harness.run();
    assert_eq!(third.listen().tokens(0), alone(&[2], 0, 3).0);
    harness.assert_nothing_is_left();
}

#[test]
fn a_full_queue_refuses_at_the_door() {
    let mut harness = Harness::new(64);
    let clients: Vec<_> = (0..8).map(|idx| harness.send(max_tokens(&idx.to_string(), 30), &[idx])).collect();
    let refused = harness.start(opening("late")).err().unwrap();
    assert_eq!(refused.code(), Code::QueueFull);
    harness.step();
    // Four run; their places are free.
    let late: Vec<_> = (0..4).map(|idx| harness.start(opening(&format!("late {idx}"))).unwrap()).collect();
    assert!(harness.start(opening("too late")).is_err());
    drop((clients, late));
    harness.step();
    harness.assert_nothing_is_left();
}

#[test]
fn a_prompt_that_many_share_is_waited_for_once() {
    let mut harness = Harness::with(64, core_config(4));
    let prompt: Vec<_> = (0..40).collect();
    let first = harness.send(GenerateOpening { num_sequences: Some(3), ..max_tokens("first", 2) }, &prompt);
    harness.step();
    assert_eq!(harness.door.load().num_tokens_to_prefill, 36 + 2);
    let second = harness.send(max_tokens("second", 2), &prompt);
    harness.step();
    assert_eq!(harness.door.load().num_tokens_to_prefill, 32 + 2 + 1);
    harness.run();
    for mut client in [first, second] {
        assert_eq!(client.listen().ended, Some(None));
    }
    harness.assert_nothing_is_left();
}

#[test]
fn who_begins_like_a_prompt_that_comes_in_chunks_waits_for_all_of_that() {
    let mut harness = Harness::new(64);
    let prompt: Vec<_> = (0..56).collect();
    let (mut first, mut reader) = harness.start(max_tokens("first", 2)).unwrap();
    harness.prompt(&first, &mut reader, &prompt[..16], false);
    harness.step();
    harness.prompt(&first, &mut reader, &prompt[16..], true);
    let mut second = harness.send(max_tokens("second", 2), &[&prompt[..50], &[60, 61]].concat());
    harness.run();
    assert_eq!(first.listen().ended, Some(None));
    assert!(matches!(second.listen().heard[0], Event::Prompt { num_tokens: 52, num_cached: 50, .. }));
    harness.assert_nothing_is_left();
}

#[test]
fn a_failing_runner_ends_everybody_and_says_why() {
    for fault in [Fault::Error { step: 3 }, Fault::Panic { step: 3 }, Fault::Short { step: 3 }] {
        let mut harness = Harness::new(64);
        harness.core.runner.fault = Some(fault);
        let mut running = harness.send(max_tokens("a", 30), &[1]);
        let (mut arriving, _) = harness.start(opening("b")).unwrap();
        let Harness { core, door, .. } = harness;
        core.run_until(&std::sync::atomic::AtomicBool::new(false), &door.failure);
        let reason = door.failure.reason().unwrap();
        let expected = match fault {
            Fault::Error { .. } => "told to fail",
            Fault::Panic { .. } => "told to panic",
            Fault::Short { .. } => "not answered",
        };
        assert!(reason.contains(expected), "{reason}");
        assert_eq!(running.listen().tokens(0).len(), 2);
        assert_eq!(running.failure(), Some(Code::Unavailable));
        assert_eq!(arriving.listen().failure(), Some(Code::Unavailable));
        let model = model();
        let limits = Limits { model: &model };
        let request = ValidGenerateRequest::new(opening("c"), limits).unwrap();
        assert_eq!(door.start(request, Instant::now()).err().unwrap().code(), Code::Unavailable);
        assert_eq!(door.load(), Load::default());
    }
}
