//! Is this balanced?

/// Critical values of the chi-square distribution for 1 to 8 degrees of freedom at a significance of 0.000,001: a
/// perfectly balanced draw fails once in a million tests, and there are some dozens in each run of all tests.
const CRITICAL: [f64; 8] = [23.928, 27.631, 30.665, 33.377, 35.888, 38.258, 40.522, 42.701];

/// Pearson's statistic of `counts` against equal shares.
pub(crate) fn chi_square(counts: &[u32]) -> f64 {
    let total: u32 = counts.iter().sum();
    let shares = u32::try_from(counts.len()).unwrap();
    let expected = f64::from(total) / f64::from(shares);
    counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum()
}

/// Whether `counts` may come from equal shares.
///
/// What the test can see, at 400 connections a share: two of five backends that are 25 % off, one up, one down, are found
/// more than nine times in ten; a permanent 0.4 % is not.
pub(crate) fn is_balanced(counts: &[u32]) -> bool {
    counts.len() < 2 || chi_square(counts) <= CRITICAL[counts.len() - 2]
}

#[test]
fn the_statistic_is_pearsons() {
    // (20-15)^2/15 * 2, by hand.
    assert!((chi_square(&[20, 10]) - 10.0 / 3.0).abs() < 1e-9);
    assert!(chi_square(&[7, 7, 7]).abs() < 1e-9);
}

#[test]
fn fair_draws_pass_and_unfair_ones_do_not() {
    // The measured draw of 50,000 connections over five endpoints in eight slots.
    assert!(is_balanced(&[9982, 9989, 9877, 10080, 10072]));
    assert!(is_balanced(&[400]));
    // One of five gets a slot more than the others, as a modulo over eight without rejection would give.
    assert!(!is_balanced(&[500, 500, 500, 250, 250]));
    assert!(!is_balanced(&[1000, 0]));
    assert!(!is_balanced(&[460, 400, 400, 400, 280]));
}
