use std::io::Write;

use clap::Parser;
use proptest::prelude::*;

use super::*;

#[derive(Parser)]
struct Typed {
    #[command(flatten)]
    workload: WorkloadArgs,
}

fn plan(flags: &str) -> anyhow::Result<Plan> {
    let typed = Typed::try_parse_from(std::iter::once("bench").chain(flags.split_whitespace()))?;
    Plan::new(&typed.workload)
}

fn error(flags: &str) -> String {
    match plan(flags).and_then(|plan| plan.workload()) {
        Ok(_) => panic!("{flags} is accepted"),
        Err(error) => format!("{error:#}"),
    }
}

fn trace(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

const TIMES: &str =
    "arrived_at,num_prefill_tokens,num_decode_tokens\n10,100,10\n12,200,20\n16,300,30\n20,400,40\n";
const LENGTHS: &str = "num_prefill_tokens,num_decode_tokens\n100,10\n200,20\n";

/// Seconds, prompt and output tokens.
fn short(workload: &Workload) -> Vec<(f64, usize, usize)> {
    let short = |arrival: &Arrival| (arrival.at.as_secs_f64(), arrival.prompt.num_tokens, arrival.num_output);
    workload.arrivals().iter().map(short).collect()
}

#[test]
fn a_trace_is_replayed_as_it_was_or_scaled() {
    let file = trace(TIMES);
    let with = |flags: &str| {
        short(&plan(&format!("--trace {} {flags}", file.path().display())).unwrap().workload().unwrap())
    };
    assert_eq!(with(""), [(0.0, 100, 10), (2.0, 200, 20), (6.0, 300, 30), (10.0, 400, 40)]);
    assert_eq!(with("--time-scale 0.5 --num-requests 2"), [(0.0, 100, 10), (1.0, 200, 20)]);
    assert_eq!(with("--from 2 --until 10"), [(0.0, 200, 20), (4.0, 300, 30)]);
    assert_eq!(
        with("--prompt-scale 0.5 --output-scale 2 --max-tokens-per-request 150 --until 7"),
        [(0.0, 50, 20), (2.0, 100, 40), (6.0, 90, 60)]
    );
    // Three gaps in ten seconds.
    assert_eq!(with("--rate 3")[3], (1.0, 400, 40));
    assert_eq!(with("--arrivals static")[3], (0.0, 400, 40));
    assert_eq!(with("--arrivals poisson --rate 1")[0], (0.0, 100, 10));
    assert_eq!(
        with("--lengths fixed --prompt-tokens 7 --output-tokens 3 --num-requests 2"),
        [(0.0, 7, 3), (2.0, 7, 3)]
    );
}

#[test]
fn what_does_not_go_together_is_said() {
    let (times, lengths) = (trace(TIMES), trace(LENGTHS));
    let (times, lengths) = (times.path().display(), lengths.path().display());
    for (flags, message) in [
        (String::new(), "--rate must be given"),
        ("--arrivals trace".to_owned(), "--arrivals trace: name one with --trace"),
        ("--lengths trace --rate 1".to_owned(), "--lengths trace: name one with --trace"),
        (format!("--trace {lengths}"), "--rate must be given"),
        (format!("--trace {lengths} --arrivals trace"), "--arrivals trace: the trace has no times"),
        (format!("--trace {lengths} --rate 1 --until 3"), "--until: the trace has no times"),
        (format!("--trace {times} --num-requests 5"), "--num-requests 5: the trace has 4"),
        (format!("--trace {times} --from 100"), "--from, --until: no request of the trace lies between them"),
        ("--arrivals static --rate 1".to_owned(), "--rate: all requests come at once"),
        ("--trace /nowhere".to_owned(), "--trace: cannot read /nowhere"),
        (
            "--lengths zipf --rate 1 --min-tokens 10 --max-tokens 9".to_owned(),
            "--min-tokens 10, --max-tokens 9",
        ),
        (
            "--lengths uniform --rate 1 --max-tokens 99999999".to_owned(),
            "--min-tokens 1024, --max-tokens 99999999",
        ),
    ] {
        let error = error(&flags);
        assert!(error.starts_with(message), "{flags}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_same_seed_is_the_same_workload_at_any_rate(seed: u64, rate in 0.1..100.0f64) {
        for arrivals in ["poisson", "gamma --cv 1.7"] {
            for lengths in ["fixed", "uniform", "zipf --zipf-scramble"] {
                let flags = format!("--arrivals {arrivals} --lengths {lengths} --seed {seed} --rate {rate}");
                let flags = format!("{flags} --num-requests 50");
                let (first, second) = (plan(&flags).unwrap(), plan(&flags).unwrap());
                let workload = first.workload().unwrap();
                prop_assert_eq!(&workload, &second.workload().unwrap());
                prop_assert_eq!(workload.arrivals().len(), 50);
                let slower = first.at_rate(rate / 4.0);
                for (one, other) in workload.arrivals().iter().zip(slower.arrivals()) {
                    prop_assert!((one.at.as_secs_f64() * 4.0 - other.at.as_secs_f64()).abs() < 1e-6);
                    prop_assert_eq!((&one.prompt, one.num_output), (&other.prompt, other.num_output));
                }
            }
        }
    }
}
