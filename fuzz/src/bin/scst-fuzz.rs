//! `scst-fuzz ENTRY SECONDS [SEED]`: runs mutations of an entry's seeds and corpus for a time.
//!
//! `scst-fuzz ENTRY FILE..` runs the entry on files, as those of a failure.
//!
//! `scst-fuzz ENTRY --seeds DIR`: writes the seeds to files, for `cargo fuzz run`.
//!
//! The input that a run dies of is in `scst-fuzz-ENTRY.last`, in the directory where it was started.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use scst_fuzz::mutate::{Rng, mutate};
use scst_fuzz::{ENTRIES, seeds};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let entry = args
        .first()
        .and_then(|name| ENTRIES.iter().find(|(n, _)| n == name));
    let (Some((name, run)), Some(second)) = (entry, args.get(1)) else {
        eprintln!(
            "usage: scst-fuzz pdus|login|text|conf|connection SECONDS [SEED]\n       scst-fuzz ENTRY FILE.."
        );
        return ExitCode::FAILURE;
    };
    if let ("--seeds", Some(dir)) = (second.as_str(), args.get(2)) {
        for (n, seed) in seeds::seeds(name).iter().enumerate() {
            std::fs::write(format!("{dir}/seed-{n}"), seed).expect("write a seed");
        }
        return ExitCode::SUCCESS;
    }
    match second.parse() {
        Ok(seconds) => {
            let seed = args.get(2).and_then(|s| s.parse().ok()).unwrap_or(1);
            long_run(name, *run, Duration::from_secs(seconds), seed);
        }
        Err(_) => {
            for file in &args[1..] {
                let data = std::fs::read(file).expect("a file");
                println!("{file}: {} bytes", data.len());
                run(&data);
            }
        }
    }
    ExitCode::SUCCESS
}

fn long_run(name: &str, run: fn(&[u8]), time: Duration, seed: u64) {
    println!("seed {seed}");
    let mut corpus = seeds::seeds(name);
    corpus.extend(scst_fuzz::corpus(name));
    let mut rng = Rng::new(seed);
    let last = format!("scst-fuzz-{name}.last");
    let begin = Instant::now();
    let mut said = begin;
    let mut runs = 0u64;
    while begin.elapsed() < time {
        let base = &corpus[rng.below(corpus.len())];
        let other = &corpus[rng.below(corpus.len())];
        let input = mutate(base, other, &mut rng);
        if name == "connection" || runs.is_multiple_of(1024) {
            std::fs::write(&last, &input).expect("write the input");
        }
        run(&input);
        runs += 1;
        if said.elapsed() > Duration::from_secs(10) {
            said = Instant::now();
            println!("{runs} runs, {} MiB resident", resident_kib() / 1024);
        }
    }
    let _ = std::fs::remove_file(&last);
    println!(
        "{runs} runs of {name} in {:?}, {} MiB resident",
        begin.elapsed(),
        resident_kib() / 1024
    );
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmRSS:"));
    let word = line.and_then(|l| l.split_whitespace().nth(1));
    word.and_then(|w| w.parse().ok()).unwrap_or(0)
}
