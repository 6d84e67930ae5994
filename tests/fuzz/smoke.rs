//! Runs every target on its seeds and on random changes of them, for some seconds each: `smoke SECONDS [SEED]`. What
//! fails stands in `artifacts/TARGET` and is run again by `smoke TARGET FILE`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use fused_fuzz::TARGETS;

const MAX_BYTES: usize = 256 << 10;
/// An input that takes longer is a fault, too.
const MAX_INPUT_TIME: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let [name, file] = words[..]
        && let Some((_, target)) = TARGETS.iter().find(|(target, _)| *target == name)
    {
        target(&fs::read(file).expect("the file"));
        return ExitCode::SUCCESS;
    }
    let seconds = words.first().and_then(|word| word.parse().ok()).unwrap_or(2);
    let seed = words.get(1).and_then(|word| word.parse().ok()).unwrap_or(1);
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "corpus/{name} is empty");
        let mut random = Random(seed);
        let (started, mut num_inputs) = (Instant::now(), 0);
        while num_inputs < seeds.len() || started.elapsed() < Duration::from_secs(seconds) {
            let mut input = seeds[random.below(seeds.len())].clone();
            if num_inputs < seeds.len() {
                input.clone_from(&seeds[num_inputs]);
            } else {
                random.change(&mut input, &seeds);
            }
            // Written before: a stack overflow leaves no moment for it.
            let artifact = PathBuf::from("artifacts").join(name);
            fs::create_dir_all("artifacts").and_then(|()| fs::write(&artifact, &input)).expect("artifacts/");
            let begun = Instant::now();
            target(&input);
            assert!(begun.elapsed() < MAX_INPUT_TIME, "{name} took {:?}: artifacts/{name}", begun.elapsed());
            fs::remove_file(&artifact).expect("artifacts/");
            num_inputs += 1;
        }
        println!("{name}: {num_inputs} inputs of {} seeds, none failed", seeds.len());
    }
    ExitCode::SUCCESS
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = fs::read_dir(Path::new("corpus").join(target))
        .map(|dir| dir.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    paths.sort();
    paths.iter().filter_map(|path| fs::read(path).ok()).collect()
}

/// xorshift64*
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end.max(1)
    }

    /// Some of: a bit turned, bytes overwritten, left out, repeated, taken from another seed, a number made odd.
    fn change(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        const ODD: [&[u8]; 8] =
            [b"-1", b"1e999", b"18446744073709551615", b"null", b"[]", b"{}", b"\"\"", b"\0\xff\xff\xff"];
        for _ in 0..=self.below(4) {
            let place = self.below(input.len());
            let len = self.below(16).min(input.len() - place);
            match self.below(6) {
                0 if !input.is_empty() => input[place] ^= 1 << self.below(8),
                1 => drop(input.drain(place..place + len)),
                2 => {
                    let piece = input[place..place + len].repeat(1 + self.below(64));
                    input.splice(place..place, piece);
                }
                3 => {
                    let other = &seeds[self.below(seeds.len())];
                    let start = self.below(other.len());
                    let end = (start + self.below(256)).min(other.len());
                    input.splice(place..place, other[start..end].iter().copied());
                }
                4 => drop(input.splice(place..place + len, ODD[self.below(ODD.len())].iter().copied())),
                _ => input.truncate(place),
            }
        }
        input.truncate(MAX_BYTES);
    }
}
