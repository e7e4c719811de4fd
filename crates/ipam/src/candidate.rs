//! The order in which a node tries the blocks of a pool (algorithm §8.1, lab Annex A).
//!
//! Any order that is stable per node, spread across nodes and complete would be correct. This one starts at the block at
//! which Calico starts too, so that both land on the same blocks: a hash of the node's name seeds an additive lagged
//! Fibonacci generator, whose first draw below the number of blocks is the start; the rest follows with wrap-around.
//!
//! The generator starts from a table of 607 words. It is not copied: it is the state of the same generator after
//! 7.8 · 10¹² steps from a simple seed, which is reached at once by arithmetic on polynomials.

use api::{Cidr, Pool};
use jiff::Timestamp;
use std::net::IpAddr;
use std::sync::OnceLock;

/// Words of the generator's register.
const LENGTH: usize = 607;
/// The new word is the sum of the word 607 steps ago and the word 273 steps ago.
const TAP: usize = 273;
/// Steps between the simple seed and the table.
const ADVANCE: u64 = 7_800_000_000_000;
/// Modulus of the small generator that fills registers.
const SMALL_MODULUS: i64 = (1 << 31) - 1;

/// The blocks of `pool` in the order in which `node` tries them, each once.
///
/// For blocks of a single address the start depends on `now` instead of the node, as upstream.
pub fn candidates(pool: &Pool, node: &str, now: Timestamp) -> impl Iterator<Item = Cidr> + use<> {
    let (cidr, prefix) = (pool.cidr, pool.block_size);
    let count = cidr.block_count(prefix);
    let start = start(pool, node, now);
    (start..count).chain(0..start).filter_map(move |index| cidr.nth_block(prefix, index))
}

/// As [`candidates`], without those that `passed` over: where it names a last address, the search goes on behind it.
///
/// A reservation or an old block of another size may span any number of candidates, in an IPv6 pool more than could
/// ever be looked at one by one.
pub fn candidates_past(
    pool: &Pool,
    node: &str,
    now: Timestamp,
    passed: impl Fn(Cidr) -> Option<IpAddr>,
) -> impl Iterator<Item = Cidr> {
    let (cidr, prefix) = (pool.cidr, pool.block_size);
    let count = cidr.block_count(prefix);
    let start = start(pool, node, now);
    let (mut next, mut wrapped) = (start, false);
    std::iter::from_fn(move || {
        loop {
            if !wrapped && next >= count {
                (next, wrapped) = (0, true);
            }
            if wrapped && next >= start {
                return None;
            }
            let candidate = cidr.nth_block(prefix, next)?;
            let Some(last) = passed(candidate) else {
                next += 1;
                return Some(candidate);
            };
            // A block of which only the beginning is passed over is tried.
            let behind = cidr.block_index(prefix, last).map_or(count, |index| {
                let whole = cidr.nth_block(prefix, index).is_some_and(|block| block.last() == last);
                index + u128::from(whole)
            });
            next = behind.max(next + 1);
        }
    })
}

/// Those of `blocks` that lie in `pool`, in the order in which `node` tries them.
///
/// For pools of which most blocks do not exist, this is cheaper than to walk all candidates.
pub fn in_order(
    pool: &Pool,
    node: &str,
    now: Timestamp,
    blocks: impl IntoIterator<Item = Cidr>,
) -> Vec<Cidr> {
    let count = pool.cidr.block_count(pool.block_size);
    let start = start(pool, node, now);
    let mut found: Vec<(u128, Cidr)> = blocks
        .into_iter()
        .filter(|block| pool.cidr.contains_cidr(*block))
        .filter_map(|block| {
            let index = pool.cidr.block_index(pool.block_size, block.network())?;
            Some((if index >= start { index - start } else { index + (count - start) }, block))
        })
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, block)| block).collect()
}

/// Number of the block at which `node` starts.
pub(crate) fn start(pool: &Pool, node: &str, now: Timestamp) -> u128 {
    let (cidr, prefix) = (pool.cidr, pool.block_size);
    let count = cidr.block_count(prefix);
    let seed = if prefix == cidr.version().bits() {
        now.as_nanosecond().rem_euclid(i128::from(SMALL_MODULUS))
    } else {
        i128::from(fnv1(node))
    };
    if count < 2 { 0 } else { Generator::new(i64::try_from(seed).unwrap_or(0)).below(count) }
}

/// FNV-1 over the bytes of a name: multiply, then xor.
fn fnv1(text: &str) -> u32 {
    text.bytes().fold(2_166_136_261, |hash, byte| hash.wrapping_mul(16_777_619) ^ u32::from(byte))
}

/// A place below `count` that a name tells: the same for the same name, and far from those of names that are alike.
pub(crate) fn place_among(count: usize, name: &str) -> usize {
    // The hash leaves names that differ at their end side by side: every bit is made to hang on all of them.
    let mixed = [0x85EB_CA6B, 0xC2B2_AE35].into_iter().fold(fnv1(name), |hash, odd: u32| {
        let folded = hash ^ (hash >> 16);
        folded.wrapping_mul(odd)
    });
    let scattered = u64::from(mixed ^ (mixed >> 15));
    let place = u64::try_from(count).unwrap_or(u64::MAX).saturating_mul(scattered) >> u32::BITS;
    usize::try_from(place).unwrap_or(0)
}

/// The small generator: 48271 · x modulo 2³¹ − 1.
struct Small(i64);

impl Small {
    /// Starts from `x`, with its first twenty values thrown away.
    fn new(x: i64) -> Self {
        let mut small = Self(x);
        for _ in 0..20 {
            small.next();
        }
        small
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0 * 48_271 % SMALL_MODULUS;
        self.0.unsigned_abs()
    }
}

/// The additive lagged Fibonacci generator over 64-bit words.
struct Generator {
    register: Vec<u64>,
    /// Position that the next step writes, one above.
    feed: usize,
    /// Position that the next step adds, one above.
    tap: usize,
}

impl Generator {
    fn new(seed: i64) -> Self {
        let seed = match seed.rem_euclid(SMALL_MODULUS) {
            0 => 89_482_311,
            seed => seed,
        };
        let mut small = Small::new(seed);
        let register = base_table()
            .iter()
            .map(|base| (small.next() << 40) ^ (small.next() << 20) ^ small.next() ^ base)
            .collect();
        Self { register, feed: LENGTH - TAP, tap: 0 }
    }

    fn next_u64(&mut self) -> u64 {
        self.feed = self.feed.checked_sub(1).unwrap_or(LENGTH - 1);
        self.tap = self.tap.checked_sub(1).unwrap_or(LENGTH - 1);
        let word = self.register[self.feed].wrapping_add(self.register[self.tap]);
        self.register[self.feed] = word;
        word
    }

    /// Bits 31 to 62 of the next word.
    fn next_u32(&mut self) -> u64 {
        (self.next_u64() >> 31) & u64::from(u32::MAX)
    }

    /// A number below `limit`: as many bits as `limit` has, drawn again until they are below it.
    fn below(&mut self, limit: u128) -> u128 {
        let bits = u128::BITS - limit.leading_zeros();
        let words = bits.div_ceil(64);
        let mask = u128::MAX >> (u128::BITS - bits);
        loop {
            let mut drawn = 0_u128;
            for word in 0..words {
                let low = self.next_u32();
                let high = self.next_u32();
                drawn |= u128::from(low | (high << 32)) << (64 * word);
            }
            // The mask reaches into the most significant word only.
            drawn &= mask;
            if drawn < limit {
                return drawn;
            }
        }
    }
}

/// The register after [`ADVANCE`] steps from the simple seed, computed once per process.
fn base_table() -> &'static [u64] {
    static TABLE: OnceLock<Vec<u64>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut small = Small::new(1);
        let start: Vec<u64> =
            (0..LENGTH).map(|_| (small.next() << 20) ^ (small.next() << 10) ^ small.next()).collect();
        advanced(&start, ADVANCE)
    })
}

/// The register that `steps` steps make of `register`.
///
/// The words form a sequence with a(n) = a(n − 607) + a(n − 273). With c the coefficients of x^steps modulo
/// x⁶⁰⁷ − x³³⁴ − 1, the word `steps` places on is the sum of c(i) · a(n + i).
fn advanced(register: &[u64], steps: u64) -> Vec<u64> {
    // Word m of the sequence, m from −606 to 0, stands at position (334 − m) mod 607.
    let position = |m: u64| usize::try_from((334 + 606 + 607 - m % 607) % 607).unwrap_or(0);
    let mut sequence: Vec<u64> = (0..607_u64).map(|m| register[position(m)]).collect();
    for n in LENGTH..2 * LENGTH {
        sequence.push(sequence[n - LENGTH].wrapping_add(sequence[n - TAP]));
    }
    let coefficients = power_of_x(steps);
    let mut result = vec![0; LENGTH];
    for m in 0..607_u64 {
        let from = usize::try_from(m).unwrap_or(0);
        let word = coefficients
            .iter()
            .zip(&sequence[from..])
            .fold(0_u64, |sum, (coefficient, word)| sum.wrapping_add(coefficient.wrapping_mul(*word)));
        result[position(m + steps % 607)] = word;
    }
    result
}

/// Coefficients of x^exponent modulo x⁶⁰⁷ − x³³⁴ − 1 over integers modulo 2⁶⁴, by squaring.
fn power_of_x(exponent: u64) -> Vec<u64> {
    let mut power = vec![0; LENGTH];
    power[0] = 1;
    for bit in (0..u64::BITS - exponent.leading_zeros()).rev() {
        power = squared(&power);
        if (exponent >> bit) & 1 == 1 {
            power.insert(0, 0);
            reduce(&mut power);
        }
    }
    power
}

fn squared(power: &[u64]) -> Vec<u64> {
    let mut product = vec![0_u64; 2 * LENGTH - 1];
    for (i, left) in power.iter().enumerate().filter(|(_, left)| **left != 0) {
        product[2 * i] = product[2 * i].wrapping_add(left.wrapping_mul(*left));
        let twice = left.wrapping_mul(2);
        for (slot, right) in product[2 * i + 1..].iter_mut().zip(&power[i + 1..]) {
            *slot = slot.wrapping_add(twice.wrapping_mul(*right));
        }
    }
    reduce(&mut product);
    product
}

/// Replaces every x⁶⁰⁷ by x³³⁴ + 1, from the highest power down.
fn reduce(product: &mut Vec<u64>) {
    for high in (LENGTH..product.len()).rev() {
        let coefficient = product[high];
        let low = high - LENGTH;
        product[low] = product[low].wrapping_add(coefficient);
        product[low + LENGTH - TAP] = product[low + LENGTH - TAP].wrapping_add(coefficient);
    }
    product.truncate(LENGTH);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn pool(cidr: &str, block_size: u8) -> Pool {
        let mut pool = Pool::with_defaults("p", cidr.parse().unwrap());
        pool.block_size = block_size;
        pool
    }

    #[test]
    fn nodes_start_at_the_blocks_that_calico_gives_them() {
        for (node, hash, index, block) in [
            ("calico-ipam-control-plane", 983_830_151, 73, "192.168.18.64/26"),
            ("calico-ipam-worker", 904_454_041, 526, "192.168.131.128/26"),
            ("calico-ipam-worker2", 1_989_672_425, 450, "192.168.112.128/26"),
            ("calico-ipam-worker3", 1_989_672_424, 363, "192.168.90.192/26"),
            ("kind-control-plane", 2_016_776_422, 328, "192.168.82.0/26"),
            ("kind-worker", 801_257_890, 650, "192.168.162.128/26"),
        ] {
            assert_eq!(fnv1(node), hash);
            assert_eq!(Generator::new(i64::from(hash)).below(1024), index);
            let first = candidates(&pool("192.168.0.0/16", 26), node, Timestamp::UNIX_EPOCH).next().unwrap();
            assert_eq!(first.to_string(), block);
        }
    }

    #[test]
    fn names_that_are_alike_have_places_everywhere() {
        let mut met = [0_u32; 64];
        (0..640).for_each(|number| met[place_among(64, &format!("net.{number:064x}"))] += 1);
        assert!(met.iter().all(|times| (1..=40).contains(times)), "{met:?}");
        let steps = (1..640).filter(|number| {
            let place = |number: i32| place_among(64, &format!("net.{number:064x}"));
            place(*number).abs_diff(place(number - 1)) <= 2
        });
        assert!(steps.count() < 100);
        assert_eq!(place_among(0, "h"), 0);
    }

    #[test]
    fn jumping_ahead_is_the_same_as_stepping() {
        let mut small = Small::new(1);
        let start: Vec<u64> = (0..LENGTH).map(|_| small.next() << 17 ^ small.next()).collect();
        for steps in [0, 1, 5, 606, 607, 608, 5000] {
            let mut stepped = Generator { register: start.clone(), feed: LENGTH - TAP, tap: 0 };
            for _ in 0..steps {
                stepped.next_u64();
            }
            assert_eq!(advanced(&start, steps), stepped.register, "{steps} steps");
        }
    }

    #[test]
    fn every_block_is_tried_once() {
        for (cidr, block_size) in
            [("10.0.0.0/24", 26), ("10.0.0.0/26", 26), ("10.0.0.0/29", 32), ("fd00::/118", 122)]
        {
            let pool = pool(cidr, block_size);
            let tried: Vec<Cidr> = candidates(&pool, "n", Timestamp::UNIX_EPOCH).collect();
            let distinct: BTreeSet<Cidr> = tried.iter().copied().collect();
            assert_eq!(tried.len(), distinct.len());
            assert_eq!(u128::try_from(tried.len()).unwrap(), pool.cidr.block_count(block_size));
            assert!(distinct.iter().all(|block| pool.cidr.contains_cidr(*block)));
        }
    }

    #[test]
    fn a_search_goes_on_behind_what_it_passes_over_however_large() {
        let now = Timestamp::UNIX_EPOCH;
        let reserved = |text: &str| {
            let reserved: Cidr = text.parse().unwrap();
            move |block: Cidr| reserved.contains_cidr(block).then(|| reserved.last())
        };
        let huge = pool("fd00::/48", 122);
        for half in ["fd00::/49", "fd00:0:0:8000::/49"] {
            let passed = reserved(half);
            let found = candidates_past(&huge, "n", now, &passed).next().unwrap();
            assert_eq!(passed(found), None);
        }
        assert_eq!(candidates_past(&huge, "n", now, reserved("fd00::/40")).next(), None);
        let single = pool("10.0.0.0/8", 32);
        let left: Vec<Cidr> = candidates_past(&single, "n", now, |block| {
            let low = IpAddr::from([10, 0, 0, 9]);
            (block.network() > low).then(|| single.cidr.last())
        })
        .collect();
        assert_eq!(left.len(), 10);
    }

    proptest::proptest! {
        #[test]
        fn every_block_of_any_pool_is_tried_once(
            base: u128,
            prefix in 0_u8..=32,
            longer in 0_u8..=10,
            six: bool,
            node in "[a-z]{0,6}",
            nanosecond in 0_i64..i64::MAX,
        ) {
            let low = u32::try_from(base & u128::from(u32::MAX)).unwrap();
            let (address, prefix) = if six {
                (IpAddr::V6(base.into()), prefix + 96)
            } else {
                (IpAddr::V4(low.into()), prefix)
            };
            let cidr = Cidr::containing(address, prefix).unwrap();
            let block_size = (prefix + longer).min(cidr.version().bits());
            let mut pool = Pool::with_defaults("p", cidr);
            pool.block_size = block_size;
            let now = Timestamp::from_nanosecond(i128::from(nanosecond)).unwrap();
            let mut tried: Vec<Cidr> = candidates(&pool, &node, now).collect();
            tried.sort();
            let count = cidr.block_count(block_size);
            proptest::prop_assert!(tried.into_iter().eq((0..count).filter_map(|n| cidr.nth_block(block_size, n))));
        }

        #[test]
        fn a_search_past_something_finds_the_candidates_without_it(
            block_size in 26_u8..=32,
            from in 0_u8..64,
            length in 0_u8..64,
            node in "[a-z]{1,6}",
        ) {
            let pool = pool("10.0.0.0/26", block_size);
            let at = |low: u8| IpAddr::from([10, 0, 0, low]);
            let (first, last) = (at(from), at(from.saturating_add(length)));
            let passed = |block: Cidr| (first <= block.network() && block.last() <= last).then_some(last);
            let now = Timestamp::UNIX_EPOCH;
            let found: Vec<Cidr> = candidates_past(&pool, &node, now, passed).collect();
            let model: Vec<Cidr> =
                candidates(&pool, &node, now).filter(|block| passed(*block).is_none()).collect();
            proptest::prop_assert_eq!(found, model);
        }
    }

    #[test]
    fn existing_blocks_come_in_the_order_of_the_candidates() {
        let pool = pool("10.0.0.0/24", 27);
        let all: Vec<Cidr> = candidates(&pool, "n", Timestamp::UNIX_EPOCH).collect();
        let mut shuffled = all.clone();
        shuffled.sort();
        shuffled.push("10.1.0.0/27".parse().unwrap());
        assert_eq!(in_order(&pool, "n", Timestamp::UNIX_EPOCH, shuffled), all);
    }

    #[test]
    fn pools_with_more_blocks_than_a_word_counts_have_a_start() {
        let first = candidates(&pool("fd00::/48", 122), "n", Timestamp::UNIX_EPOCH).next().unwrap();
        assert!(pool("fd00::/48", 122).cidr.contains_cidr(first));
    }
}
