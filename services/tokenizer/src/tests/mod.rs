//! The service as a whole, over gRPC, with an engine that answers what the test wrote down.

mod fake_engine;

use std::time::Duration;

use fused_checkpoint::ModelFiles;
use fused_lifecycle::Lifecycle;
use fused_proto::common::v1::{FinishReason, LogprobParams};
use fused_proto::text::v1::finish_info::Matched;
use fused_proto::text::v1::generate_response::Message;
use fused_proto::text::v1::prompt::Prompt as PromptKind;
use fused_proto::text::v1::text_generation_client::TextGenerationClient;
use fused_proto::text::v1::{
    Chat, DetokenizeRequest, FinishInfo, GenerateRequest, GenerateResponse, GetModelRequest, Prompt,
    PromptInfo, RenderChatRequest, StopStrings, TextLogprobs, TokenIds, TokenizeRequest, Usage,
};
use fused_status::{Code, Error};
use fused_transport::{Channel, Replica};
use fused_vocabulary::{PatchVocabulary, SpecialTokens, Vocabulary};
use tokio::sync::watch;
use tonic::Streaming;
use tonic::service::Routes;

use self::fake_engine::{FakeEngine, Seen, Step, VOCAB_SIZE, logprobs};
use crate::{Config, Readiness, Tokenizer};

/// The demo model's vocabulary with its patch.
fn vocabulary() -> Vocabulary {
    let json = std::fs::read(fused_testkit::model_dir("demo-llama-tldr").join("tokenizer.json")).unwrap();
    Vocabulary::load(&json, Some(patch())).unwrap()
}

fn patch() -> PatchVocabulary {
    let path = fused_testkit::model_dir("demo-llama-tldr").join("patch_vocabulary.json");
    PatchVocabulary::parse(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(text: &str) -> Vec<u32> {
    let encoding = vocabulary().encode(text, SpecialTokens::Omit).unwrap();
    encoding.ids.into_iter().map(|id| id.0).collect()
}

/// One token a byte.
fn byte_ids(text: &str) -> Vec<u32> {
    let vocabulary = vocabulary();
    let is_byte = |id: u32, byte: u8| vocabulary.token_bytes(fused_vocabulary::TokenId(id)) == [byte];
    text.bytes().map(|byte| (1..8192).find(|id| is_byte(*id, byte)).unwrap()).collect()
}

struct Service {
    client: TextGenerationClient<Channel>,
    tokenizer: Tokenizer,
    lifecycle: Lifecycle,
}

impl Service {
    /// Starts the tokenizer without waiting for its engines.
    fn begin(engines: Vec<Replica>) -> Self {
        Self::follow(watch::channel(engines).1)
    }

    fn follow(engines: watch::Receiver<Vec<Replica>>) -> Self {
        let lifecycle = Lifecycle::new();
        let files = ModelFiles::open(&fused_testkit::model_dir("demo-llama-tldr")).unwrap();
        let config = Config { engine_check_interval: Duration::from_millis(20), ..Config::default() };
        let tokenizer = Tokenizer::start(config, &files, Some(patch()), engines, &lifecycle).unwrap();
        let channel = fused_transport::in_process(Routes::new(tokenizer.service()), &lifecycle);
        Self { client: TextGenerationClient::new(channel), tokenizer, lifecycle }
    }

    async fn start(engines: &[&FakeEngine]) -> Self {
        let service = Self::begin(engines.iter().map(|engine| engine.endpoint.clone()).collect());
        while service.tokenizer.core.engines.num_usable() < engines.len() {
            tokio::task::yield_now().await;
        }
        assert_eq!(*service.tokenizer.ready().borrow(), Readiness::Ready);
        service
    }

    async fn generate(&self, request: GenerateRequest) -> Result<Streaming<GenerateResponse>, Error> {
        let answer = self.client.clone().generate(request).await;
        answer.map(tonic::Response::into_inner).map_err(Error::from)
    }

    async fn run(&self, request: GenerateRequest) -> Result<Answer, Error> {
        let mut stream = self.generate(request).await?;
        let mut answer = Answer::default();
        while let Some(message) = stream.message().await? {
            assert!(answer.usage.is_none(), "nothing comes after the usage");
            match message.message.unwrap() {
                Message::PromptInfo(info) => assert!(answer.prompt.replace(info).is_none()),
                Message::Text(increment) => {
                    let sequence = increment.sequence_idx() as usize;
                    answer.texts.resize(answer.texts.len().max(sequence + 1), String::new());
                    answer.texts[sequence].push_str(increment.text());
                    answer.token_ids.extend(increment.token_ids);
                    answer.logprobs.extend(increment.logprobs);
                }
                Message::Finish(info) => answer.finishes.push(info),
                Message::Usage(usage) => answer.usage = Some(usage),
            }
        }
        assert!(answer.usage.is_some(), "the usage came");
        Ok(answer)
    }
}

#[derive(Default)]
struct Answer {
    prompt: Option<PromptInfo>,
    texts: Vec<String>,
    token_ids: Vec<u32>,
    logprobs: Vec<TextLogprobs>,
    finishes: Vec<FinishInfo>,
    usage: Option<Usage>,
}

impl Answer {
    fn completion_tokens(&self) -> u32 {
        self.usage.as_ref().unwrap().completion_tokens()
    }
}

fn engine(steps: Vec<Step>) -> FakeEngine {
    FakeEngine::start("fake", &patch().fingerprint().to_string(), steps)
}

/// The demo model's end of sequence.
const END: u32 = 0;

fn answering(tokens: &[&[u32]]) -> Vec<Step> {
    let num_tokens: usize = tokens.iter().map(|ids| ids.len()).sum();
    let increments = tokens.iter().map(|ids| Step::Tokens(0, ids.to_vec()));
    let mut steps = vec![Step::Prompt(Vec::new())];
    steps.extend(increments);
    steps.push(Step::Ending(0, END));
    steps.push(Step::Eos(0, num_tokens as u32 + 1));
    steps
}

fn text(prompt: &str) -> GenerateRequest {
    GenerateRequest { prompt: Some(text_prompt(prompt)), ..GenerateRequest::default() }
}

fn text_prompt(prompt: &str) -> Prompt {
    Prompt { prompt: Some(PromptKind::Text(prompt.to_owned())), add_special_tokens: None }
}

fn stops(strings: &[&str]) -> Option<StopStrings> {
    let strings = strings.iter().map(|string| (*string).to_owned()).collect();
    Some(StopStrings { strings, include_in_output: None })
}

async fn cancelled(engine: &mut FakeEngine) -> bool {
    loop {
        match engine.seen.recv().await.unwrap() {
            Seen::Request { .. } => {}
            Seen::Cancelled => return true,
            Seen::Ended => return false,
        }
    }
}

#[tokio::test]
async fn text_goes_in_and_out_and_is_counted() {
    let output = ids(" the current directory.\n> More information: <https://www.");
    let (first, second) = output.split_at(2);
    let mut engine = engine(answering(&[first, second]));
    let service = Service::start(&[&engine]).await;
    let prompt = "# ls\n\n> List files in";
    let answer = service.run(text(prompt)).await.unwrap();

    assert_eq!(answer.texts, [" the current directory.\n> More information: <https://www."]);
    assert_eq!(
        answer.token_ids,
        [&*output, &[END]].concat(),
        "the ending token is one, though it has no text"
    );
    let info = answer.prompt.unwrap();
    assert_eq!(
        (info.prompt_tokens() as usize, &info.token_ids, info.text),
        (ids(prompt).len(), &ids(prompt), None)
    );
    assert_eq!(answer.finishes[0].reason(), FinishReason::Stop);
    assert_eq!(answer.finishes[0].matched, Some(Matched::EosTokenId(0)));
    let usage = answer.usage.unwrap();
    assert_eq!(usage.cached_prompt_tokens(), 3);
    assert_eq!(usage.completion_tokens() as usize, output.len() + 1);
    let base =
        vocabulary().expand(&output.iter().map(|id| fused_vocabulary::TokenId(*id)).collect::<Vec<_>>());
    assert_eq!(usage.completion_base_tokens() as usize, base.len() + 1);
    assert!(usage.completion_base_tokens() > usage.completion_tokens() + 5, "the patch saves tokens");
    assert!(usage.prompt_base_tokens() >= usage.prompt_tokens());

    let Some(Seen::Request { opening, prompt_chunks }) = engine.seen.recv().await else {
        panic!("no request")
    };
    assert_eq!(opening.vocabulary_fingerprint(), patch().fingerprint().to_string());
    assert!(!opening.request_id().is_empty());
    assert_eq!(prompt_chunks.concat(), ids(prompt));
    assert!(!cancelled(&mut engine).await, "a finished request is not counted as cancelled");
}

#[tokio::test]
async fn salt_and_priority_go_on_unread() {
    let mut engine = engine(answering(&[]));
    let service = Service::start(&[&engine]).await;
    for (cache_salt, priority) in
        [(None, None), (Some("tenant-7"), Some(-3)), (Some(""), Some(0)), (Some(&*"x".repeat(300)), None)]
    {
        let cache_salt = cache_salt.map(str::to_owned);
        let request = GenerateRequest { cache_salt: cache_salt.clone(), priority, ..text("x") };
        service.run(request).await.unwrap();
        let opening = loop {
            if let Some(Seen::Request { opening, .. }) = engine.seen.recv().await {
                break opening;
            }
        };
        assert_eq!((opening.cache_salt, opening.priority), (cache_salt, priority));
    }
}

#[tokio::test]
async fn a_long_prompt_is_sent_in_chunks() {
    let mut engine = engine(answering(&[]));
    let service = Service::start(&[&engine]).await;
    let prompt: Vec<u32> = (1..=1000).collect();
    let kind = PromptKind::TokenIds(TokenIds { ids: prompt.clone() });
    let prompt_message = Prompt { prompt: Some(kind), add_special_tokens: None };
    service
        .run(GenerateRequest { prompt: Some(prompt_message), ..GenerateRequest::default() })
        .await
        .unwrap();
    let Some(Seen::Request { prompt_chunks, .. }) = engine.seen.recv().await else { panic!("no request") };
    assert_eq!(prompt_chunks.iter().map(Vec::len).collect::<Vec<_>>(), [512, 488]);
    assert_eq!(prompt_chunks.concat(), prompt);
}

/// Text that is encoded in pieces, which is on its way before its tail is encoded.
#[tokio::test]
async fn a_long_text_reaches_the_engine_as_encoded_at_once() {
    let long = |num_tokens| {
        FakeEngine::with_context("fake", &patch().fingerprint().to_string(), answering(&[]), num_tokens)
    };
    let page =
        "# ls\n\n> List files, 東京, and what else there is: <https://www.gnu.org/software/coreutils>.\n\n";
    let prompt: String = (0..1000).map(|number| format!("{number} {page}")).collect();
    let expected = ids(&prompt);
    let mut engine = long(1 << 20);
    let answer = Service::start(&[&engine]).await.run(text(&prompt)).await.unwrap();
    let Some(Seen::Request { prompt_chunks, .. }) = engine.seen.recv().await else { panic!("no request") };
    assert!(prompt_chunks.iter().rev().skip(1).all(|chunk| chunk.len() == 512), "full chunks");
    assert_eq!(prompt_chunks.concat(), expected);
    let usage = answer.usage.unwrap();
    assert_eq!(usage.prompt_tokens() as usize, expected.len());
    let base = vocabulary().encode(&prompt, SpecialTokens::Omit).unwrap().num_base_tokens;
    assert_eq!(usage.prompt_base_tokens() as usize, base);

    // Found out when most of it is at the engine already.
    let engine = long(expected.len() as u32 - 1);
    let refused = Service::start(&[&engine]).await.run(text(&prompt)).await;
    let status = refused.err().unwrap();
    assert!(status.message().contains("maximum context length"), "{status}");
}

#[tokio::test]
async fn a_character_over_token_borders_is_never_cut() {
    let bytes = byte_ids("aä東👩b");
    let increments: Vec<&[u32]> = bytes.chunks(1).collect();
    let engine = engine(answering(&increments));
    let service = Service::start(&[&engine]).await;
    let mut stream = service.generate(text("x")).await.unwrap();
    let mut texts = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        if let Some(Message::Text(increment)) = message.message {
            texts.push(increment.text().to_owned());
        }
    }
    texts.retain(|text| !text.is_empty());
    assert_eq!(texts, ["a", "ä", "東", "👩", "b"]);
}

#[tokio::test]
async fn a_stop_string_over_several_tokens_ends_the_request_at_the_engine_too() {
    let mut steps = answering(&[&byte_ids("go ST"), &byte_ids("OP on")]);
    steps.insert(steps.len() - 1, Step::Hang);
    let mut engine = engine(steps);
    let service = Service::start(&[&engine]).await;
    let answer = service.run(GenerateRequest { stop: stops(&["STOP"]), ..text("x") }).await.unwrap();
    assert_eq!(answer.texts, ["go "]);
    assert_eq!(answer.token_ids, byte_ids("go STOP"), "the stop string's are drawn tokens too");
    assert_eq!(answer.finishes[0].reason(), FinishReason::Stop);
    assert_eq!(answer.finishes[0].matched, Some(Matched::StopString("STOP".to_owned())));
    assert_eq!(answer.completion_tokens(), 7, "counted up to the token that completed the stop string");
    assert!(cancelled(&mut engine).await);
}

#[tokio::test]
async fn a_stop_string_inside_an_n_token_cuts_its_text() {
    let patch = patch();
    let n_token = patch.n_tokens().iter().find(|n_token| n_token.text.contains("path/to/file")).unwrap();
    let engine = engine(answering(&[&[n_token.id.0], &ids("never seen")]));
    let service = Service::start(&[&engine]).await;
    let answer = service.run(GenerateRequest { stop: stops(&["/to"]), ..text("x") }).await.unwrap();
    assert_eq!(answer.texts, [n_token.text.split("/to").next().unwrap()]);
    assert_eq!(answer.token_ids, [n_token.id.0], "the n-token stays whole");
    assert_eq!(answer.completion_tokens(), 1);
    assert_eq!(answer.usage.unwrap().completion_base_tokens() as usize, n_token.base.len());
}

#[tokio::test]
async fn stop_strings_can_be_part_of_the_output_and_need_min_tokens() {
    let engine = engine(answering(&[&byte_ids("a.b.c")]));
    let service = Service::start(&[&engine]).await;
    let include = StopStrings { strings: vec![".".to_owned()], include_in_output: Some(true) };
    let mut request = GenerateRequest { stop: Some(include), ..text("x") };
    assert_eq!(service.run(request.clone()).await.unwrap().texts, ["a."]);
    request.stopping.get_or_insert_default().min_tokens = Some(2);
    assert_eq!(service.run(request).await.unwrap().texts, ["a.b."]);
}

#[tokio::test]
async fn an_ending_token_is_part_of_the_text_where_that_is_asked_for() {
    let engine = engine(answering(&[&byte_ids("a")]));
    let service = Service::start(&[&engine]).await;
    for (include_in_output, skip_special_tokens, expected) in
        [(false, false, "a"), (true, true, "a"), (true, false, "a<|endoftext|>")]
    {
        let stop = StopStrings { strings: Vec::new(), include_in_output: Some(include_in_output) };
        let skip_special_tokens = Some(skip_special_tokens);
        let request = GenerateRequest { stop: Some(stop), skip_special_tokens, ..text("x") };
        let answer = service.run(request).await.unwrap();
        assert_eq!(
            (&*answer.texts[0], answer.token_ids.last(), answer.completion_tokens()),
            (expected, Some(&END), 2)
        );
    }
}

#[tokio::test]
async fn an_echo_shows_the_prompts_special_tokens_where_those_are_not_skipped() {
    let engine = engine(answering(&[]));
    let service = Service::start(&[&engine]).await;
    let prompt = "a<|endoftext|>b";
    for (skip_special_tokens, expected) in [(true, "ab"), (false, prompt)] {
        let skip_special_tokens = Some(skip_special_tokens);
        let request = GenerateRequest { echo: Some(true), skip_special_tokens, ..text(prompt) };
        assert_eq!(service.run(request).await.unwrap().prompt.unwrap().text(), expected);
    }
}

#[tokio::test]
async fn several_sequences_end_each_on_its_own() {
    let engine = engine(vec![
        Step::Prompt(Vec::new()),
        Step::Tokens(0, byte_ids("one!")),
        Step::Tokens(1, byte_ids("two")),
        Step::Tokens(0, byte_ids("ignored")),
        Step::Tokens(1, byte_ids(" more")),
        Step::Length(1, 8),
        Step::Tokens(0, byte_ids("ignored")),
        Step::Hang,
    ]);
    let service = Service::start(&[&engine]).await;
    let request = GenerateRequest { stop: stops(&["!"]), num_sequences: Some(2), ..text("x") };
    let answer = service.run(request).await.unwrap();
    assert_eq!(answer.texts, ["one", "two more"]);
    let ends: Vec<_> = answer.finishes.iter().map(|end| (end.sequence_idx(), end.reason())).collect();
    assert_eq!(ends, [(0, FinishReason::Stop), (1, FinishReason::Length)]);
    assert_eq!(answer.completion_tokens(), 4 + 8);
}

#[tokio::test]
async fn the_engine_is_told_which_of_several_sequences_has_hit_a_stop_string() {
    let mut engine = engine(vec![
        Step::Prompt(Vec::new()),
        Step::Tokens(1, byte_ids("one!")),
        Step::AwaitEnough(1),
        Step::Tokens(2, byte_ids("two")),
        Step::Tokens(2, byte_ids("!")),
        Step::AwaitEnough(2),
        Step::Stopped(1, 4),
        Step::Stopped(2, 4),
        Step::Tokens(0, byte_ids("three")),
        Step::Length(0, 5),
    ]);
    let service = Service::start(&[&engine]).await;
    let request = GenerateRequest { stop: stops(&["!"]), num_sequences: Some(3), ..text("x") };
    let answer = service.run(request).await.unwrap();
    assert_eq!(answer.texts, ["three", "one", "two"]);
    assert_eq!(answer.finishes.len(), 3);
    assert_eq!(answer.completion_tokens(), 4 + 4 + 5);
    assert!(!cancelled(&mut engine).await, "the engine has ended all of them");
}

#[tokio::test]
async fn text_offsets_count_the_characters_that_were_emitted() {
    let output = byte_ids("aä東b");
    let mut steps = answering(&[&output]);
    let prompt_ids = ids("äö #");
    steps[0] = Step::Prompt(
        prompt_ids.iter().enumerate().map(|(idx, id)| logprobs(*id, (idx > 0).then_some(-0.5))).collect(),
    );
    steps[1] = Step::TokensWithLogprobs(0, output.clone());
    let engine = engine(steps);
    let service = Service::start(&[&engine]).await;
    let params = LogprobParams { num_output: Some(1), num_prompt: Some(1) };
    let request = GenerateRequest { logprobs: Some(params), ..text("äö #") };

    let offsets =
        |positions: &[TextLogprobs]| positions.iter().map(|at| at.text_offset()).collect::<Vec<_>>();
    let answer = service.run(request.clone()).await.unwrap();
    assert_eq!(offsets(&answer.logprobs), [0, 1, 1, 2, 2, 2, 3, 4]);
    let end = answer.logprobs.last().unwrap().token.as_ref().unwrap();
    assert_eq!((end.token_id(), end.text(), end.logprob), (END, "<|endoftext|>", Some(-2.0)));
    let second = answer.logprobs[1].token.as_ref().unwrap();
    assert_eq!((second.bytes(), second.text(), second.logprob), (&[0xC3][..], "\u{FFFD}", Some(-1.0)));
    assert_eq!(answer.logprobs[1].top.len(), 1);

    let echoed = service.run(GenerateRequest { echo: Some(true), ..request }).await.unwrap();
    assert_eq!(offsets(&echoed.logprobs), [4, 5, 5, 6, 6, 6, 7, 8]);
    let prompt = echoed.prompt.unwrap();
    assert_eq!(prompt.text(), "äö #");
    assert_eq!(prompt.logprobs.len(), prompt_ids.len());
    assert_eq!(prompt.logprobs[0].token.as_ref().unwrap().logprob, None);
    assert_eq!(prompt.logprobs.last().unwrap().token.as_ref().unwrap().logprob, Some(-0.5));
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_request_at_the_engine() {
    let mut engine = engine(vec![Step::Prompt(Vec::new()), Step::Tokens(0, byte_ids("a")), Step::Hang]);
    let service = Service::start(&[&engine]).await;
    let mut stream = service.generate(text("x")).await.unwrap();
    stream.message().await.unwrap();
    assert_eq!(service.lifecycle.num_requests(), 1);
    drop(stream);
    assert!(cancelled(&mut engine).await);
    assert_eq!(service.lifecycle.num_requests(), 0);
}

#[tokio::test]
async fn an_engine_with_another_vocabulary_is_refused_with_both_fingerprints_and_taken_when_it_has_ours() {
    let other = "0".repeat(64);
    let engine = FakeEngine::start("stranger", &other, answering(&[&byte_ids("a")]));
    let service = Service::begin(vec![engine.endpoint.clone()]);
    let mut ready = service.tokenizer.ready();
    let reason = |readiness: &Readiness| match readiness {
        Readiness::NotReady(reason) => reason.clone(),
        Readiness::Ready => String::new(),
    };
    let reason = reason(&ready.wait_for(|now| reason(now).contains(&other)).await.unwrap());
    assert!(reason.contains("stranger") && reason.contains(&patch().fingerprint().to_string()), "{reason}");
    assert_eq!(service.run(text("x")).await.err().unwrap().code(), Code::Unavailable);

    engine.set_fingerprint(&patch().fingerprint().to_string());
    ready.wait_for(|now| *now == Readiness::Ready).await.unwrap();
    assert_eq!(service.run(text("x")).await.unwrap().texts, ["a"]);
}

#[tokio::test]
async fn an_engine_that_dies_in_the_middle_is_an_error_and_no_end() {
    let mut engine = engine(vec![Step::Prompt(Vec::new()), Step::Tokens(0, byte_ids("a")), Step::Hang]);
    let service = Service::start(&[&engine]).await;
    let mut stream = service.generate(text("x")).await.unwrap();
    stream.message().await.unwrap().unwrap();
    stream.message().await.unwrap().unwrap();
    engine.die();
    let error = Error::from(stream.message().await.unwrap_err());
    assert_eq!(error.code(), Code::Unavailable);
    service.tokenizer.ready().wait_for(|now| *now != Readiness::Ready).await.unwrap();
}

#[tokio::test]
async fn an_engine_that_stops_short_is_an_error_and_no_end() {
    let engine = engine(vec![Step::Prompt(Vec::new()), Step::Tokens(0, byte_ids("a"))]);
    let service = Service::start(&[&engine]).await;
    assert_eq!(service.run(text("x")).await.err().unwrap().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_request_lost_before_its_first_answer_goes_to_another_engine() {
    let broken = engine(vec![Step::Fail(Code::ShuttingDown)]);
    let fingerprint = patch().fingerprint().to_string();
    let fine = FakeEngine::start("fine", &fingerprint, answering(&[&byte_ids("a")]));
    let service = Service::start(&[&broken, &fine]).await;
    for _ in 0..4 {
        assert_eq!(service.run(text("x")).await.unwrap().texts, ["a"]);
    }
}

#[tokio::test]
async fn an_engine_that_cannot_serve_one_request_is_tried_past_and_not_set_aside() {
    let full = engine(vec![Step::Fail(Code::Unavailable)]);
    let service = Service::start(&[&full]).await;
    let ready = service.tokenizer.ready();
    assert_eq!(service.run(text("x")).await.err().unwrap().code(), Code::Unavailable);
    assert!(!ready.has_changed().unwrap(), "others can still be served");

    let fingerprint = patch().fingerprint().to_string();
    let fine = FakeEngine::start("fine", &fingerprint, answering(&[&byte_ids("a")]));
    let service = Service::start(&[&full, &fine]).await;
    for _ in 0..4 {
        assert_eq!(service.run(text("x")).await.unwrap().texts, ["a"]);
        assert_eq!(service.tokenizer.core.engines.num_usable(), 2);
    }
}

#[tokio::test]
async fn an_engine_that_is_shutting_down_is_set_aside() {
    let going = engine(vec![Step::Fail(Code::ShuttingDown)]);
    let service = Service::start(&[&going]).await;
    let ready = service.tokenizer.ready();
    assert_eq!(service.run(text("x")).await.err().unwrap().code(), Code::ShuttingDown);
    assert!(ready.has_changed().unwrap());
}

#[tokio::test]
async fn engines_come_and_go() {
    let fingerprint = patch().fingerprint().to_string();
    let engine =
        |name: &str, text: &str| FakeEngine::start(name, &fingerprint, answering(&[&byte_ids(text)]));
    let (first, second) = (engine("first", "a"), engine("second", "b"));
    let (list, followed) = watch::channel(Vec::new());
    let service = Service::follow(followed);
    let mut ready = service.tokenizer.ready();
    assert!(matches!(&*ready.borrow(), Readiness::NotReady(why) if why.contains("no address")));
    for (listed, expected) in [(&first, "a"), (&second, "b")] {
        list.send_replace(vec![listed.endpoint.clone()]);
        // The old engine is no longer listed from the moment the new one is looked at.
        while service.tokenizer.core.engines.names() != [listed.endpoint.name.clone()] {
            tokio::task::yield_now().await;
        }
        ready.wait_for(|now| *now == Readiness::Ready).await.unwrap();
        assert_eq!(service.run(text("x")).await.unwrap().texts, [expected]);
    }
}

#[tokio::test]
async fn an_engines_refusal_reaches_the_caller() {
    let engine = engine(vec![Step::Fail(Code::QueueFull)]);
    let service = Service::start(&[&engine]).await;
    let error = service.run(text("x")).await.err().unwrap();
    assert_eq!((error.code(), error.message()), (Code::QueueFull, "the test wants it"));
    assert_eq!(error.retry_after_ms(), None);
}

#[tokio::test]
async fn when_to_come_back_reaches_the_caller_before_and_after_the_first_answer() {
    let fail = || Step::FailFor(Code::QueueFull, Duration::from_millis(2100));
    for steps in [vec![fail()], vec![Step::Prompt(Vec::new()), fail()]] {
        let engine = engine(steps);
        let error = Service::start(&[&engine]).await.run(text("x")).await.err().unwrap();
        assert_eq!((error.code(), error.retry_after_ms()), (Code::QueueFull, Some(2100)));
    }
}

#[tokio::test]
async fn a_deadline_ends_a_request() {
    let mut engine = engine(vec![Step::Prompt(Vec::new()), Step::Hang]);
    let service = Service::start(&[&engine]).await;
    let error = service.run(GenerateRequest { timeout_us: Some(50_000), ..text("x") }).await.err().unwrap();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(cancelled(&mut engine).await);
}

#[tokio::test]
async fn bad_requests_are_refused_by_field() {
    let engine = engine(answering(&[]));
    let service = Service::start(&[&engine]).await;
    let long = "word ".repeat(2000);
    let huge = "x".repeat(3 << 20);
    let ids_prompt = |ids: Vec<u32>| GenerateRequest {
        prompt: Some(Prompt {
            prompt: Some(PromptKind::TokenIds(TokenIds { ids })),
            add_special_tokens: None,
        }),
        ..GenerateRequest::default()
    };
    let user = r#"{"role": "user", "content": "tar"}"#;
    let chat = |message: &str, template: Option<&str>| {
        let template = template.map(str::to_owned);
        let chat = Chat { messages_json: vec![message.to_owned()], template, ..Chat::default() };
        let prompt = Prompt { prompt: Some(PromptKind::Chat(chat)), add_special_tokens: None };
        GenerateRequest { prompt: Some(prompt), ..GenerateRequest::default() }
    };
    let model = Some("other".to_owned());
    let cases = [
        (GenerateRequest { model, ..text("x") }, Code::ModelNotFound, "model"),
        (GenerateRequest::default(), Code::InvalidArgument, "prompt"),
        (ids_prompt(Vec::new()), Code::InvalidArgument, "prompt"),
        (ids_prompt(vec![VOCAB_SIZE]), Code::InvalidArgument, "prompt"),
        (ids_prompt(vec![1; 1025]), Code::ContextLengthExceeded, "prompt"),
        (text(&long), Code::ContextLengthExceeded, "prompt"),
        (text(&huge), Code::ContextLengthExceeded, "prompt"),
        (GenerateRequest { stop: stops(&[""]), ..text("x") }, Code::InvalidArgument, "stop"),
        (GenerateRequest { stop: stops(&[&huge[..1024]; 5]), ..text("x") }, Code::InvalidArgument, "stop"),
        (chat("{", None), Code::InvalidArgument, "messages[0]"),
        (chat(user, Some("{{ messages }}")), Code::Unsupported, "chat_template"),
        (GenerateRequest { num_sequences: Some(0), ..text("x") }, Code::InvalidArgument, "n"),
        (GenerateRequest { num_sequences: Some(129), ..text("x") }, Code::InvalidArgument, "n"),
        (
            GenerateRequest { truncate_prompt_tokens: Some(0), ..text("x") },
            Code::InvalidArgument,
            "truncate_prompt_tokens",
        ),
        (
            GenerateRequest { request_id: Some(String::new()), ..text("x") },
            Code::InvalidArgument,
            "request_id",
        ),
    ];
    for (request, code, param) in cases {
        let error = service.run(request).await.err().unwrap();
        assert_eq!((error.code(), error.param()), (code, Some(param)), "{error}");
    }
    let truncated = GenerateRequest { truncate_prompt_tokens: Some(5), ..text(&long) };
    assert_eq!(service.run(truncated).await.unwrap().usage.unwrap().prompt_tokens(), 5);
}

#[tokio::test]
async fn an_empty_text_becomes_the_models_beginning() {
    let engine = engine(answering(&[]));
    let service = Service::start(&[&engine]).await;
    let answer = service.run(text("")).await.unwrap();
    assert_eq!(answer.prompt.unwrap().token_ids, ids("<|endoftext|>"));
    let usage = answer.usage.unwrap();
    assert_eq!((usage.prompt_tokens(), usage.prompt_base_tokens()), (1, 1));
    // Nothing is generated from it: nothing has to begin.
    let request = TokenizeRequest { prompt: Some(text_prompt("")), ..TokenizeRequest::default() };
    let tokenized = service.client.clone().tokenize(request).await.unwrap().into_inner();
    assert_eq!((tokenized.token_ids.len(), tokenized.base_tokens(), tokenized.num_tokens()), (0, 0, 0));
}

#[tokio::test]
async fn a_long_answer_comes_in_pieces() {
    let engine = engine(Vec::new());
    let service = Service::start(&[&engine]).await;
    let mut client = service.client.clone();
    let long: String = (0..40_000).map(|number| format!("{number} ")).collect();
    for prompt in ["", "tar", &long] {
        let request = TokenizeRequest {
            prompt: Some(text_prompt(prompt)),
            return_token_texts: Some(true),
            return_token_pieces: Some(true),
            model: None,
        };
        let whole = client.tokenize(request.clone()).await.unwrap().into_inner();
        let mut pieces = client.tokenize_stream(request).await.unwrap().into_inner();
        let (mut ids, mut texts, mut spelled, mut num_pieces) = (Vec::new(), String::new(), String::new(), 0);
        while let Some(piece) = pieces.message().await.unwrap() {
            assert!(piece.token_ids.len() <= 4096 && piece.token_texts.len() <= 4096);
            let is_first = num_pieces == 0;
            let counts = (piece.num_tokens, piece.base_tokens, piece.max_model_len);
            let expected = (whole.num_tokens, whole.base_tokens, whole.max_model_len);
            assert_eq!(counts, if is_first { expected } else { (None, None, None) });
            ids.extend(piece.token_ids);
            texts.extend(piece.token_texts);
            spelled.extend(piece.token_pieces);
            num_pieces += 1;
        }
        assert_eq!((ids.len(), &*texts), (whole.num_tokens() as usize, prompt));
        assert_eq!(spelled, prompt.replace(' ', "Ġ"), "as the tokenizer's file spells them");
        assert_eq!(ids, whole.token_ids);
        assert_eq!(num_pieces > 1, prompt.len() > 10, "{num_pieces}");
    }
    let prompt = Some(text_prompt(&"a b".repeat(1 << 20)));
    let huge = TokenizeRequest { prompt, return_token_texts: Some(true), ..TokenizeRequest::default() };
    let error = Error::from(client.tokenize(huge.clone()).await.unwrap_err());
    assert_eq!((error.code(), error.param()), (Code::InvalidArgument, Some("prompt")), "{error}");
    assert!(client.tokenize_stream(huge).await.unwrap().into_inner().message().await.unwrap().is_some());
}

#[tokio::test]
async fn tokens_whose_text_outgrows_a_message_are_refused() {
    let engine = engine(Vec::new());
    let service = Service::start(&[&engine]).await;
    let vocabulary = vocabulary();
    let longest =
        (0..8192).max_by_key(|id| vocabulary.token_bytes(fused_vocabulary::TokenId(*id)).len()).unwrap();
    let request = DetokenizeRequest { token_ids: vec![longest; 2 << 20], ..DetokenizeRequest::default() };
    let error = Error::from(service.client.clone().detokenize(request).await.unwrap_err());
    assert_eq!((error.code(), error.param()), (Code::InvalidArgument, Some("tokens")), "{error}");
}

#[tokio::test]
async fn a_draining_service_takes_no_new_request() {
    let engine = engine(answering(&[]));
    let service = Service::start(&[&engine]).await;
    service.lifecycle.begin_drain();
    assert_eq!(service.run(text("x")).await.err().unwrap().code(), Code::ShuttingDown);
}

#[tokio::test]
async fn tokenizing_detokenizing_rendering_and_the_model() {
    let engine = engine(Vec::new());
    let service = Service::start(&[&engine]).await;
    let mut client = service.client.clone();

    let prompt = "# tar\n\n> Archiving utility.\n> More information: <https://www.";
    let request = TokenizeRequest {
        prompt: Some(text_prompt(prompt)),
        return_token_texts: Some(true),
        ..TokenizeRequest::default()
    };
    let tokenized = client.tokenize(request).await.unwrap().into_inner();
    assert_eq!(tokenized.token_ids, ids(prompt));
    assert_eq!(tokenized.token_texts.concat(), prompt);
    assert!(tokenized.base_tokens() > tokenized.token_ids.len() as u32);
    assert_eq!(tokenized.max_model_len(), 1024);

    let request = DetokenizeRequest { token_ids: tokenized.token_ids, ..DetokenizeRequest::default() };
    assert_eq!(client.detokenize(request).await.unwrap().into_inner().text(), prompt);
    // Of a row that only pads the embedding.
    let token_ids = [ids("tar"), vec![VOCAB_SIZE - 1]].concat();
    let request = DetokenizeRequest { token_ids, ..DetokenizeRequest::default() };
    assert_eq!(client.detokenize(request).await.unwrap().into_inner().text(), "tar");
    let unknown = DetokenizeRequest { token_ids: vec![VOCAB_SIZE], ..DetokenizeRequest::default() };
    assert_eq!(Error::from(client.detokenize(unknown).await.unwrap_err()).param(), Some("tokens"));

    let messages_json = vec![r#"{"role": "user", "content": "tar"}"#.to_owned()];
    let chat = Chat { messages_json, ..Chat::default() };
    let request = RenderChatRequest { chat: Some(chat), model: Some("demo".to_owned()) };
    let rendered = client.render_chat(request).await.unwrap().into_inner();
    assert_eq!(rendered.text(), "<|endoftext|># tar\n\n>");
    assert_eq!(rendered.token_ids, ids("<|endoftext|># tar\n\n>"));
    assert_eq!(rendered.token_ids[0], 0, "the template's special token is one token");

    let model = client.get_model(GetModelRequest { model: None }).await.unwrap().into_inner();
    assert_eq!((model.id(), model.max_model_len()), ("demo", 1024));
}
