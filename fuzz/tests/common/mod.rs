//! Runs an entry on its seeds, its corpus, and mutations of both.

use scst_fuzz::mutate::{Rng, mutate};
use scst_fuzz::{ENTRIES, corpus, seeds};

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// `runs` mutations, or as many as `SCST_FUZZ_RUNS` says.
pub(crate) fn replay(name: &str, runs: u64) {
    let run = ENTRIES
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, run)| run)
        .expect("an entry");
    let mut inputs = seeds::seeds(name);
    inputs.extend(corpus(name));
    for input in &inputs {
        run(input);
    }
    let seed = env("SCST_SEED").unwrap_or(0x5c57);
    println!("SCST_SEED={seed}");
    let mut rng = Rng::new(seed);
    for _ in 0..env("SCST_FUZZ_RUNS").unwrap_or(runs) {
        let base = &inputs[rng.below(inputs.len())];
        let other = &inputs[rng.below(inputs.len())];
        run(&mutate(base, other, &mut rng));
    }
}
