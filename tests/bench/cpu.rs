//! Processor time from the text of `/proc/PID/stat`: unlike the time on the clock, it does not count what else the machine
//! was doing.

/// Linux counts in these for every architecture's programs (proc(5), USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds that the process itself took: utime and stime.
pub(crate) fn own_s(stat: &str) -> Option<f64> {
    sum_of_two(stat, 11)
}

/// Seconds that its ended children took: cutime and cstime.
pub(crate) fn children_s(stat: &str) -> Option<f64> {
    sum_of_two(stat, 13)
}

/// The sum of the fields `skip` and `skip + 1` behind the program's name, which stands in parentheses.
fn sum_of_two(stat: &str, skip: usize) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut ticks = fields.split_ascii_whitespace().skip(skip).map(str::parse::<f64>);
    Some((ticks.next()?.ok()? + ticks.next()?.ok()?) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_odd_names() {
        let stat = "1 (a) b) S 1 2 3 4 5 6 7 8 9 10 300 100 150 50 20 0";
        assert_eq!(own_s(stat), Some(4.0));
        assert_eq!(children_s(stat), Some(2.0));
        assert_eq!(own_s("1 (a) S"), None);
    }
}
