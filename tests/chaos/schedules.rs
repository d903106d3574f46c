//! A bounded number of schedules, for `make test`.

use std::thread;

use super::schedule::{Menu, Setting, on_stage};
use crate::support::dice::Dice;

/// Steps of a schedule between two reckonings.
const STEPS: usize = 60;

const SEEDS: [u64; 3] = [1, 2, 3];

/// `CHAOS_SEED` chooses one schedule, `CHAOS_STEPS` its length.
#[test]
fn random_faults_over_random_changes_end_in_the_right_state() {
    let seeds = number("CHAOS_SEED").map_or(SEEDS.to_vec(), |seed| vec![seed]);
    let steps = number("CHAOS_STEPS").map_or(STEPS, |it| usize::try_from(it).unwrap());
    thread::scope(|scope| {
        for seed in seeds {
            scope.spawn(move || check(seed, steps));
        }
    });
}

fn check(seed: u64, steps: usize) {
    let setting = Setting::of(seed);
    println!("CHAOS_SEED={seed} CHAOS_STEPS={steps}: {setting:?}");
    on_stage(seed, setting, |stage| {
        let mut dice = Dice::new(seed);
        stage.settle(false);
        let half = steps.div_ceil(2);
        for _ in 0..2 {
            stage.play(&mut dice, half, Menu { api_faults: 3, restarts: true, patient: false });
        }
        println!("CHAOS_SEED={seed}: {:?}", stage.tally);
        if number("CHAOS_LOG").is_some() {
            println!("{}\n{}", stage.told(), stage.proxy.log());
        }
    });
}

pub(super) fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|error| panic!("{variable}={value}: {error}")))
}
