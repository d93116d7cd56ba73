//! Sizes and times in the units and the form in which SmartOS shows them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// Bytes in a mebibyte.
pub(crate) const MIB: u64 = 1 << 20;
/// Bytes in a gibibyte.
pub(crate) const GIB: u64 = 1 << 30;

/// A size in a larger unit, not rounded: a whole number where it is one.
pub(crate) fn size(bytes: u64, unit: u64) -> Value {
    if bytes.is_multiple_of(unit) {
        Value::from(bytes / unit)
    } else {
        Value::from(bytes as f64 / unit as f64)
    }
}

/// The first second of the year 10000, which the format cannot hold.
const END: u64 = 253_402_300_800;

/// Milliseconds since the epoch as `2018-04-11T17:20:56.000Z`; `None` from the year 10000 on.
pub(crate) fn iso_millis(millis: u64) -> Option<String> {
    if millis / 1000 >= END {
        return None;
    }
    let time = UNIX_EPOCH + Duration::from_millis(millis);
    Some(humantime::format_rfc3339_millis(time).to_string())
}

/// Seconds since the epoch, as [`iso_millis`].
pub(crate) fn iso_seconds(seconds: u64) -> Option<String> {
    iso_millis(seconds.checked_mul(1000)?)
}

/// A time of the system, cut to whole seconds; `None` also before the epoch.
pub(crate) fn iso_time(time: SystemTime) -> Option<String> {
    iso_seconds(time.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_whole_where_it_can_be() {
        assert_eq!(size(10 * GIB, GIB).to_string(), "10");
        assert_eq!(size(GIB * 5 / 2, GIB).to_string(), "2.5");
        assert_eq!(size(0, MIB).to_string(), "0");
    }

    #[test]
    fn a_time_is_written_with_milliseconds_in_utc() {
        assert_eq!(
            iso_seconds(1_523_467_256).unwrap(),
            "2018-04-11T17:20:56.000Z"
        );
        assert_eq!(
            iso_millis(1_523_467_256_070).unwrap(),
            "2018-04-11T17:20:56.070Z"
        );
        let time = UNIX_EPOCH + Duration::from_millis(1_523_467_256_999);
        assert_eq!(iso_time(time).unwrap(), "2018-04-11T17:20:56.000Z");
    }

    #[test]
    fn a_time_that_the_format_cannot_hold_is_none() {
        assert_eq!(iso_seconds(END - 1).unwrap(), "9999-12-31T23:59:59.000Z");
        assert_eq!(iso_seconds(END), None);
        assert_eq!(iso_seconds(u64::MAX), None);
        assert_eq!(iso_time(UNIX_EPOCH - Duration::from_secs(1)), None);
    }
}
