//! Completions over time, in a fixed number of steps: when they run out, each two become one.

/// Most steps. A finished series of some length has between half as many and as many.
const STEPS: usize = 400;
/// Length of a step at first.
const FIRST_STEP_NS: u64 = 5_000_000;

/// Number of completions in each step of time since the start.
#[derive(Clone, Debug)]
pub struct Series {
    counts: Box<[u64; STEPS]>,
    step_ns: u64,
    current: usize,
    /// End of the current step.
    until_ns: u64,
}

impl Default for Series {
    fn default() -> Self {
        Series { counts: Box::new([0; STEPS]), step_ns: FIRST_STEP_NS, current: 0, until_ns: FIRST_STEP_NS }
    }
}

impl Series {
    /// Counts completions at `now_ns` since the start, which never goes back.
    #[inline(always)]
    pub fn add(&mut self, now_ns: u64, count: u64) {
        if now_ns >= self.until_ns {
            self.advance(now_ns);
        }
        self.counts[self.current] += count;
    }

    #[cold]
    fn advance(&mut self, now_ns: u64) {
        while now_ns / self.step_ns >= STEPS as u64 {
            self.halve();
        }
        self.current = (now_ns / self.step_ns) as usize;
        self.until_ns = (self.current as u64 + 1) * self.step_ns;
    }

    /// Makes each two steps one.
    fn halve(&mut self) {
        for index in 0..STEPS {
            let pair = |at: usize| self.counts.get(at).copied().unwrap_or(0);
            self.counts[index] = pair(2 * index) + pair(2 * index + 1);
        }
        self.step_ns *= 2;
    }

    /// Adds a series of the same time.
    pub fn merge(&mut self, other: &Series) {
        let mut other = other.clone();
        while self.step_ns < other.step_ns {
            self.halve();
        }
        while other.step_ns < self.step_ns {
            other.halve();
        }
        for (sum, count) in self.counts.iter_mut().zip(other.counts.iter()) {
            *sum += count;
        }
    }

    /// Completions per second in each whole step of the first `duration_ns`, and the length of a step in seconds.
    pub fn rates(&self, duration_ns: u64) -> (f64, Vec<f64>) {
        let seconds = self.step_ns as f64 / 1e9;
        let whole = ((duration_ns / self.step_ns) as usize).min(STEPS);
        (seconds, self.counts[..whole].iter().map(|&count| count as f64 / seconds).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_time_is_kept_in_few_steps_and_nothing_is_lost() {
        let mut series = Series::default();
        let mut other = Series::default();
        other.add(1_000_000, 7);
        for second in 0..100 {
            series.add(second * 1_000_000_000, 10);
        }
        series.merge(&other);
        let (step, rates) = series.rates(100_000_000_000);
        assert!((200..=STEPS).contains(&rates.len()), "{}", rates.len());
        let total: f64 = rates.iter().map(|rate| rate * step).sum();
        assert!((total - 1007.0).abs() < 1e-6, "{total}");
        assert!((rates[0] * step - 17.0).abs() < 1e-6);
    }
}
