//! Whether paired measurements of two programs differ, and by how much.
//!
//! The question of a pair is the logarithm of its ratio. Sign-flip permutation test: if the programs were equal, each
//! pair's sign would be chance, so that the mean found is compared with those of every choice of signs, or of many choices drawn by
//! chance where there are too many of them (Phipson and Smyth 2010: what was found counts as one of them). Nothing is assumed of how
//! the noise is distributed; a pair that is far off (the machine did something else) counts no more than a usual one. Several questions
//! at once are corrected by Holm's method.

use crate::classbench::Dice;

/// Pairs of which every choice of signs is tried.
const EXACT: usize = 16;
/// Choices that are drawn for more.
const DRAWN: u32 = 20_000;

/// The middle of some figures; the mean of the middle two if they are even.
#[must_use]
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        even if even.is_multiple_of(2) => (sorted[even / 2 - 1] + sorted[even / 2]) / 2.0,
        odd => sorted[odd / 2],
    }
}

/// How probable a mean of logarithms as far above 0 as this one would be if signs were chance (one-sided).
#[must_use]
pub fn sign_flip(ratios: &[f64]) -> f64 {
    let logs: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
    // Three of four pairs may be far off.
    let mut sizes: Vec<f64> = logs.iter().map(|log| log.abs()).collect();
    sizes.sort_unstable_by(f64::total_cmp);
    let usual = sizes.get(sizes.len() / 4).copied().unwrap_or_default();
    let logs: Vec<f64> = logs.iter().map(|log| log.clamp(-usual, usual)).collect();
    // Rounding must not make the choice that was found another one.
    let as_far = logs.iter().sum::<f64>() - 1e-12;
    if logs.len() <= EXACT {
        let choices = 1_u32 << logs.len();
        let far = (0..choices).filter(|choice| flipped(&logs, |pair| choice >> pair & 1 == 1) >= as_far);
        return far.count() as f64 / f64::from(choices);
    }
    let mut dice = Dice::new(11);
    let far = (0..DRAWN).filter(|_| flipped(&logs, |_| dice.below(2) == 1) >= as_far);
    (far.count() + 1) as f64 / f64::from(DRAWN + 1)
}

/// The sum of logarithms, those of some pairs with the other sign.
fn flipped(logs: &[f64], mut is_flipped: impl FnMut(usize) -> bool) -> f64 {
    let logs = logs.iter().enumerate();
    logs.map(|(pair, log)| if is_flipped(pair) { -log } else { *log })
        .sum()
}

/// Probabilities of several questions, corrected so that one wrong answer among all is as improbable as each was (Holm 1979).
#[must_use]
pub fn holm(probabilities: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|one, two| probabilities[*one].total_cmp(&probabilities[*two]));
    let mut corrected = vec![0.0; probabilities.len()];
    let mut least: f64 = 0.0;
    for (rank, place) in order.into_iter().enumerate() {
        let factor = (probabilities.len() - rank) as f64;
        least = least.max((probabilities[place] * factor).min(1.0));
        corrected[place] = least;
    }
    corrected
}

/// Between which figures the median lies in 95 of 100 samples drawn from these (bootstrap, always the same draws).
#[must_use]
pub fn interval(figures: &[f64]) -> (f64, f64) {
    const DRAWS: usize = 2000;
    if figures.is_empty() {
        return (f64::NAN, f64::NAN);
    }
    let mut dice = Dice::new(7);
    let mut medians: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let draw: Vec<f64> = figures
                .iter()
                .map(|_| figures[dice.below(figures.len() as u32) as usize])
                .collect();
            median(&draw)
        })
        .collect();
    medians.sort_unstable_by(f64::total_cmp);
    (medians[DRAWS / 40], medians[DRAWS - 1 - DRAWS / 40])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ratios around `middle` with noise of up to 3 % on each side, and now and then a pair that is far off.
    fn noisy(middle: f64, pairs: usize, seed: u64) -> Vec<f64> {
        let mut dice = Dice::new(seed);
        let mut noise = || 1.0 + (f64::from(dice.below(6001)) - 3000.0) / 100_000.0;
        let mut ratios: Vec<f64> = (0..pairs).map(|_| middle * noise() / noise()).collect();
        // As often too fast as too slow.
        ratios[0] *= if dice.below(2) == 0 { 1.3 } else { 1.0 / 1.3 };
        ratios
    }

    #[test]
    fn a_tenth_is_found_and_nothing_is_not() {
        let mut blamed = 0;
        for seed in 0..300 {
            let slow = noisy(1.1, 16, seed);
            assert!(
                sign_flip(&slow) < 0.01 / 6.0 && median(&slow) > 1.05,
                "seed {seed}: {slow:?}"
            );
            blamed += u32::from(sign_flip(&noisy(1.0, 16, seed)) < 0.01);
        }
        // One of a hundred is the promise.
        assert!(blamed <= 9, "{blamed} of 300 equal programs were blamed");
    }

    /// On a machine where somebody else comes and goes, so that either run of a pair may take 1.6 times as long.
    #[test]
    fn a_tenth_is_found_where_every_third_run_is_disturbed() {
        let disturbed = |middle: f64, seed: u64| -> Vec<f64> {
            let mut dice = Dice::new(1000 + seed);
            let mut run = |cycles: f64| cycles * if dice.below(3) == 0 { 1.6 } else { 1.0 };
            noisy(middle, 96, seed)
                .into_iter()
                .map(|ratio| run(ratio) / run(1.0))
                .collect()
        };
        let (mut found, mut blamed) = (0, 0);
        for seed in 0..40 {
            let slow = disturbed(1.1, seed);
            found += u32::from(sign_flip(&slow) < 0.01 / 6.0 && median(&slow) > 1.03);
            blamed += u32::from(sign_flip(&disturbed(1.0, seed)) < 0.01);
        }
        assert!(found >= 39, "a tenth was found in {found} of 40");
        assert!(blamed <= 2, "{blamed} of 40 equal programs were blamed");
    }

    #[test]
    fn faster_is_not_slower() {
        assert!(sign_flip(&noisy(0.9, 12, 1)) > 0.99);
    }

    #[test]
    fn the_least_probability_is_one_choice_of_all() {
        assert_eq!(sign_flip(&[1.1, 1.2, 1.3]), 1.0 / 8.0);
        assert_eq!(sign_flip(&[]), 1.0);
    }

    /// The example of Holm's method: 0.01, 0.04, 0.03, 0.005.
    #[test]
    fn questions_are_corrected_in_their_order() {
        let corrected = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (found, expected) in corrected.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((found - expected).abs() < 1e-12, "{corrected:?}");
        }
    }

    #[test]
    fn the_interval_is_around_the_median() {
        let figures = noisy(1.05, 12, 3);
        let (low, high) = interval(&figures);
        assert!(low <= median(&figures) && median(&figures) <= high && high - low < 0.1);
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[1.0, 2.0])), (2.0, 1.5));
    }
}
