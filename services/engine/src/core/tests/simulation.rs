//! Random lives of random requests: arrivals, chunks, aborts, slow readers, deadlines, memory that runs short. Whatever
//! happens to the others, whoever finishes gets what it would have got alone; and nothing is left behind.

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
    trouble: Trouble,
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
    let prompt = prop::collection::vec(0..98u32, 1..30);
    (0..40usize, prompt, 1..4usize, 1..3u32, 1..30u32, trouble).prop_map(
        |(arrives_at, prompt, num_chunks, num_sequences, max_tokens, trouble)| Life {
            arrives_at,
            prompt,
            num_chunks,
            num_sequences,
            max_tokens,
            trouble,
        },
    )
}

impl Life {
    fn opening(&self, id: &str) -> GenerateOpening {
        let timeout_us = match self.trouble {
            Trouble::HasDeadline { steps } => Some(steps as u64 * 1000),
            _ => None,
        };
        GenerateOpening {
            num_sequences: Some(self.num_sequences),
            timeout_us,
            ..max_tokens(id, self.max_tokens)
        }
    }

    fn chunk(&self, idx: usize) -> &[u32] {
        let len = self.prompt.len().div_ceil(self.num_chunks);
        self.prompt.chunks(len).nth(idx).unwrap_or(&[])
    }

    fn assert_end(&self, client: &Client) {
        match (&self.trouble, client.failure()) {
            (Trouble::DoesNotRead, Some(code)) => assert_eq!(code, Code::SlowReader),
            (Trouble::HasDeadline { .. }, Some(code)) => assert_eq!(code, Code::DeadlineExceeded),
            (_, Some(code)) => panic!("{self:?} ended with {code:?}"),
            (_, None) => assert_eq!(client.finishes().len(), self.num_sequences as usize),
        }
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
        num_pages in 16..40usize,
    ) {
        let config = CoreConfig { stream_buffer: 24, ..core_config(9) };
        let mut harness = Harness::with(num_pages, config);
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
