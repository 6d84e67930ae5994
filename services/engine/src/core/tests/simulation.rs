//! Random lives of random requests: arrivals, chunks, common prefixes, salts, priorities, aborts, slow readers, deadlines,
//! memory that runs short, under every policy. Whatever happens to the others, whoever finishes gets what it would have got
//! alone; and nothing is left behind.

use fused_proto::common::v1::LogprobParams;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
struct Life {
    arrives_at: usize,
    prompt: Vec<u32>,
    /// The prompt arrives in this many chunks, one a step.
    num_chunks: usize,
    num_sequences: u32,
    max_tokens: u32,
    priority: i32,
    salt: Salt,
    tells_prompt_logprobs: bool,
    trouble: Trouble,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Salt {
    None,
    Common,
    /// Nobody else's.
    Own,
}

#[derive(Clone, Debug, PartialEq)]
enum Trouble {
    None,
    Aborts { at: usize },
    Leaves { at: usize },
    DoesNotRead,
    HasDeadline { steps: usize },
}

fn life() -> impl Strategy<Value = Life> {
    let trouble = prop_oneof![
        6 => Just(Trouble::None),
        1 => (0..40usize).prop_map(|at| Trouble::Aborts { at }),
        1 => (0..40usize).prop_map(|at| Trouble::Leaves { at }),
        1 => Just(Trouble::DoesNotRead),
        1 => (1..40usize).prop_map(|steps| Trouble::HasDeadline { steps }),
    ];
    let salt = prop_oneof![4 => Just(Salt::None), 2 => Just(Salt::Common), 1 => Just(Salt::Own)];
    let prompt = (prompt(), 1..4usize, salt, prop::bool::weighted(0.2));
    (0..40usize, prompt, 1..4u32, 0..26u32, -1..2i32, trouble).prop_map(
        |(arrives_at, prompt, num_sequences, max_tokens, priority, trouble)| {
            let (prompt, num_chunks, salt, tells_prompt_logprobs) = prompt;
            Life {
                arrives_at,
                prompt,
                num_chunks,
                num_sequences,
                max_tokens,
                priority,
                salt,
                tells_prompt_logprobs,
                trouble,
            }
        },
    )
}

/// Begins like others, or not.
fn prompt() -> impl Strategy<Value = Vec<u32>> {
    let own = prop::collection::vec(0..98u32, 1..9);
    let common = prop_oneof![1 => Just((0, 0)), 3 => (0..2u32, 14..31usize)];
    (common, own).prop_map(|((family, num_common), own)| {
        (0..).map(|idx| (50 * family + idx) % 98).take(num_common).chain(own).collect()
    })
}

fn config() -> impl Strategy<Value = CoreConfig> {
    let schedule = prop::option::of((8..64usize, 1..8usize, 1..5usize));
    let order = prop_oneof![
        Just(Order::Fcfs),
        (1..20_000u64).prop_map(|us| Order::Priority { ageing: Duration::from_micros(us) }),
    ];
    let policy = prop_oneof![2 => Just(PolicyName::Sarathi), 1 => prop::sample::select(&PolicyName::ALL)];
    (policy, schedule, order, NUM_SLOTS..80).prop_map(|(policy, schedule, order, token_budget)| {
        let chunks = match schedule {
            None => ChunkSize::Balanced { parity_tokens: 8 },
            Some((high, low, stages)) => {
                ChunkSize::Schedule(ChunkSchedule { high, low, max_tokens: MAX_MODEL_LEN, stages })
            }
        };
        CoreConfig {
            scheduler: SchedulerConfig {
                policy,
                token_budget,
                prefill_order: PrefillOrder::default(),
                chunks,
            },
            order,
            stream_buffer: 40,
            ..core_config(token_budget)
        }
    })
}

impl Life {
    fn opening(&self, id: &str) -> GenerateOpening {
        let timeout_us = match self.trouble {
            Trouble::HasDeadline { steps } => Some(steps as u64 * 1000),
            _ => None,
        };
        let num_prompt = self.tells_prompt_logprobs.then_some(0);
        GenerateOpening {
            num_sequences: Some(self.num_sequences),
            timeout_us,
            priority: Some(self.priority),
            cache_salt: match self.salt {
                Salt::None => None,
                Salt::Common => Some("common".to_owned()),
                Salt::Own => Some(id.to_owned()),
            },
            logprobs: Some(LogprobParams { num_prompt, ..LogprobParams::default() }),
            ..max_tokens(id, self.max_tokens)
        }
    }

    fn chunk(&self, idx: usize) -> &[u32] {
        let len = self.prompt.len().div_ceil(self.num_chunks);
        self.prompt.chunks(len).nth(idx).unwrap_or(&[])
    }

    /// What is told of the prompt, if anything is.
    fn assert_prompt(&self, client: &Client) {
        let told = client.heard.iter().find_map(|event| match event {
            Event::Prompt { num_tokens, num_cached, logprobs } => Some((num_tokens, num_cached, logprobs)),
            _ => None,
        });
        let Some((num_tokens, num_cached, logprobs)) = told else { return };
        assert_eq!(*num_tokens, self.prompt.len());
        assert!(self.salt != Salt::Own || *num_cached == 0, "{self:?} saw what is another's");
        assert_eq!(logprobs.is_some(), self.tells_prompt_logprobs);
        if let Some(logprobs) = logprobs {
            let positions: Vec<_> = logprobs.rest.iter().map(|l| (l.token.0, -l.logprob as usize)).collect();
            let expected: Vec<_> = self.prompt.iter().copied().zip(0..).skip(1).collect();
            assert_eq!(positions, expected, "{self:?}");
        }
    }

    fn assert_end(&self, client: &Client) {
        match (&self.trouble, client.failure()) {
            (Trouble::DoesNotRead, Some(code)) => assert_eq!(code, Code::SlowReader),
            (Trouble::HasDeadline { .. }, Some(code)) => assert_eq!(code, Code::DeadlineExceeded),
            (_, Some(code)) => panic!("{self:?} ended with {code:?}"),
            (_, None) => assert_eq!(client.finishes().len(), self.num_sequences as usize),
        }
        self.assert_prompt(client);
        let most = client.finishes().iter().map(|finish| finish.timings.num_preemptions).max();
        assert!(most.unwrap_or(0) <= 5, "{self:?} gave way too often");
        for idx in 0..self.num_sequences {
            let (tokens, reason) = alone(&self.prompt, idx, self.max_tokens as usize);
            let heard = client.tokens(idx);
            assert!(tokens.starts_with(&heard), "{self:?}");
            let finish = client.finishes().into_iter().find(|finish| finish.sequence_idx == idx);
            if let Some(finish) = finish.filter(|finish| finish.reason != FinishReason::Aborted) {
                assert_eq!((finish.reason, heard), (reason, tokens), "{self:?}");
            }
        }
    }
}

proptest! {
    #[test]
    fn whoever_finishes_gets_what_it_would_have_got_alone(
        lives in prop::collection::vec(life(), 1..8),
        num_pages in 16..48usize,
        config in config(),
        has_mapper in prop::bool::weighted(0.2),
        num_ahead in 0..2usize,
    ) {
        let runner = MockRunner { num_ahead, ..MockRunner::default() };
        let mut harness = Harness::on(runner, num_pages, config);
        if has_mapper {
            harness.core.kv.start_mapper().unwrap();
        }
        let mut clients: Vec<Option<(Client, PromptReader)>> = lives.iter().map(|_| None).collect();
        let mut num_idle = 0;
        for now in 0.. {
            for (idx, (life, client)) in lives.iter().zip(&mut clients).enumerate() {
                let id = idx.to_string();
                if now == life.arrives_at {
                    *client = Some(harness.start(life.opening(&id)).unwrap());
                }
                if life.trouble == (Trouble::Leaves { at: now }) {
                    *client = None;
                }
                let age = now.wrapping_sub(life.arrives_at);
                if let Some((client, prompt)) = client {
                    if age < life.num_chunks {
                        harness.prompt(client, prompt, life.chunk(age), age + 1 == life.num_chunks);
                    }
                    if life.trouble != Trouble::DoesNotRead {
                        client.listen();
                    }
                }
            }
            for (idx, life) in lives.iter().enumerate() {
                if life.trouble == (Trouble::Aborts { at: now }) {
                    harness.abort(&idx.to_string());
                }
            }
            let progress = harness.step();
            harness.pass(Duration::from_millis(1));
            num_idle = if progress == Progress::Ran { 0 } else { num_idle + 1 };
            if num_idle > 50 {
                break;
            }
            prop_assert!(now < 10_000, "it does not come to an end");
        }
        for (life, client) in lives.iter().zip(&mut clients) {
            if let Some((client, _)) = client {
                client.listen();
                prop_assert!(client.ended.is_some(), "{:?} never ended", life);
                life.assert_end(client);
            }
        }
        harness.assert_nothing_is_left();
    }
}
