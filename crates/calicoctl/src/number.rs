//! Numbers as Calico's tables show them: five significant digits, and percentages rounded to even.

/// `count` as C's `%.5g` writes the nearest double: `65536`, `1.3107e+05`.
pub(crate) fn five_digits(count: u128) -> String {
    if count < 100_000 {
        return count.to_string();
    }
    // Rust writes 1.3107e5 where C writes 1.3107e+05.
    #[expect(clippy::cast_precision_loss, reason = "five digits of it are shown")]
    let text = format!("{:.4e}", count as f64);
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let mantissa = mantissa.trim_end_matches('0').trim_end_matches('.');
    format!("{mantissa}e+{exponent:0>2}")
}

/// `count` with its share of `total`: `10 (0%)`. The share is rounded to an integer, halves to the even one.
pub(crate) fn share(count: u128, total: u128) -> String {
    format!("{} ({}%)", five_digits(count), percent(count, total))
}

fn percent(count: u128, total: u128) -> u128 {
    if total == 0 {
        return 0;
    }
    // Of counts that large the lowest bits do not show, and without them nothing below overflows.
    let shift = if total.max(count) > u128::MAX / 256 { 8 } else { 0 };
    let (count, total) = (count >> shift, (total >> shift).max(1));
    let (whole, rest) = (count * 100 / total, count * 100 % total);
    let up = rest * 2 > total || (rest * 2 == total && whole % 2 == 1);
    whole + u128::from(up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_five_digits() {
        for (count, text) in [
            (0, "0"),
            (8, "8"),
            (65536, "65536"),
            (99999, "99999"),
            (100_000, "1e+05"),
            (131_072, "1.3107e+05"),
            (1_048_576, "1.0486e+06"),
            (16_777_216, "1.6777e+07"),
            (i64::MAX.unsigned_abs().into(), "9.2234e+18"),
            (1 << 80, "1.2089e+24"),
        ] {
            assert_eq!(five_digits(count), text);
        }
    }

    #[test]
    fn shares_are_rounded_to_even() {
        for (count, total, text) in [
            (10, 65536, "10 (0%)"),
            (65526, 65536, "65526 (100%)"),
            (5, 64, "5 (8%)"),
            (59, 64, "59 (92%)"),
            (3, 8, "3 (38%)"),
            (5, 8, "5 (62%)"),
            (1, 8, "1 (12%)"),
            (1, 200, "1 (0%)"),
            (8, 8, "8 (100%)"),
            (0, 0, "0 (0%)"),
        ] {
            assert_eq!(share(count, total), text);
        }
        assert_eq!(percent(u128::MAX, u128::MAX), 100);
        assert_eq!(percent(u128::MAX / 2, u128::MAX), 50);
        assert_eq!(percent(7, u128::MAX), 0);
    }
}
