//! Measurements taken in turn, and what comes of comparing them.
use pollux_loadgen::campaign::Spread;

/// One measurement of one of several sides.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Index of the side.
    pub side: usize,
    /// Requests in flight.
    pub depth: u16,
    /// Number of the round: those of one round met the same machine.
    pub round: u32,
    /// Requests per second.
    pub rate: f64,
    /// Round trip of a cache line before and after, in nanoseconds.
    pub round_trip_ns: Option<(f64, f64)>,
}

fn rates(samples: &[Sample], depth: u16, side: usize) -> impl Iterator<Item = (u32, f64)> {
    samples
        .iter()
        .filter(move |sample| (sample.depth, sample.side) == (depth, side))
        .map(|sample| (sample.round, sample.rate))
}

/// Requests per second of a side at this depth. `None`: it was not measured.
pub fn rate(samples: &[Sample], depth: u16, side: usize) -> Option<Spread> {
    Spread::new(rates(samples, depth, side).map(|(_, rate)| rate))
}

/// Requests per second of `ours` divided by those of `other`, round by round, without those in which the other was so
/// held up that it finished nothing. `None`: there is no such round.
pub fn ratio(samples: &[Sample], depth: u16, ours: usize, other: usize) -> Option<Spread> {
    let other_in = |round: u32| rates(samples, depth, other).find(|sample| sample.0 == round && sample.1 > 0.0);
    let pairs = rates(samples, depth, ours).filter_map(|(round, rate)| Some(rate / other_in(round)?.1));
    Spread::new(pairs)
}

/// The side among `sides` that has the best median at this depth.
pub fn best(samples: &[Sample], depth: u16, sides: &[usize]) -> Option<usize> {
    let medians = sides.iter().filter_map(|&side| Some((side, rate(samples, depth, side)?.median)));
    medians.max_by(|first, second| first.1.total_cmp(&second.1)).map(|(side, _)| side)
}

/// Round trips before and after all of this depth's measurements of these sides.
pub fn round_trip_ns(samples: &[Sample], depth: u16, sides: &[usize]) -> Option<Spread> {
    let of_depth = samples.iter().filter(|sample| sample.depth == depth && sides.contains(&sample.side));
    Spread::new(of_depth.filter_map(|sample| sample.round_trip_ns).flat_map(|(before, after)| [before, after]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rates of a side at depth 8, round by round.
    fn side(side: usize, rates: &[f64]) -> Vec<Sample> {
        let sample = |(round, &rate): (usize, &f64)| Sample {
            side,
            depth: 8,
            round: round as u32,
            rate,
            round_trip_ns: Some((100.0 * side as f64, 50.0)),
        };
        rates.iter().enumerate().map(sample).collect()
    }

    #[test]
    fn a_ratio_is_that_of_the_same_round() {
        // The machine halves its speed in the second round.
        let mut samples = [side(0, &[200.0, 100.0, 210.0]), side(1, &[100.0, 50.0, 100.0])].concat();
        let found = ratio(&samples, 8, 0, 1).expect("pairs");
        assert_eq!((found.median, found.min, found.max), (2.0, 2.0, 2.1));
        // A round that one of them did not finish is no pair; nor is another depth.
        samples.retain(|sample| (sample.side, sample.round) != (1, 0));
        assert_eq!(ratio(&samples, 8, 0, 1).map(|found| found.max), Some(2.1));
        assert_eq!(ratio(&samples, 8, 0, 1).map(|found| found.min), Some(2.0));
        assert_eq!((ratio(&samples, 1, 0, 1), ratio(&samples, 8, 0, 7)), (None, None));
        // Nothing is infinitely often something.
        let held_up = [side(0, &[1.0, 4.0]), side(1, &[0.0, 2.0])].concat();
        assert_eq!(ratio(&held_up, 8, 0, 1).map(|found| found.max), Some(2.0));
    }

    #[test]
    fn the_best_rival_is_that_of_the_best_median_at_the_depth() {
        let samples = [side(1, &[10.0, 90.0, 10.0]), side(2, &[20.0, 20.0, 20.0]), side(3, &[15.0; 3])].concat();
        assert_eq!(best(&samples, 8, &[1, 2, 3]), Some(2), "one good round is no median");
        assert_eq!(best(&samples, 8, &[1, 3, 4]), Some(3), "who was not measured is not the best");
        assert_eq!(best(&samples, 1, &[1, 2, 3]), None);
    }

    #[test]
    fn round_trips_are_those_of_the_sides_compared() {
        let samples = [side(1, &[1.0; 3]), side(2, &[1.0; 3])].concat();
        let trips = round_trip_ns(&samples, 8, &[2]).expect("round trips");
        assert_eq!((trips.min, trips.max), (50.0, 200.0));
        assert_eq!(round_trip_ns(&samples, 8, &[1]).map(|trips| trips.max), Some(100.0));
        assert_eq!(round_trip_ns(&samples, 1, &[1]), None);
    }
}
