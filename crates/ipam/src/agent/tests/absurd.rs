//! Requests and pools of absurd size: refused or answered with a bounded number of commits, and nothing is left of them.

use super::*;
use api::Reservation;

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

/// An agent of `n1`, one pool, and what is reserved.
fn bench(pool: &str, block_size: u8, reserved: &[&str]) -> Bench {
    let store = Memory::new();
    let mut made = Pool::with_defaults("p", cidr(pool));
    made.block_size = block_size;
    put(&store, Record::Pool(made));
    let cidrs = reserved.iter().map(|text| cidr(text)).collect();
    put(&store, Record::Reservation(Reservation { name: "r".to_owned(), cidrs }));
    put(&store, Record::Node(Node { name: "n1".to_owned(), ..Node::default() }));
    bench_on(&store, "n1")
}

fn ask(bench: &mut Bench, versions: Vec<IpVersion>) -> Reply {
    bench.requests += 1;
    let demand = Demand::new("h", versions, BTreeMap::new());
    bench.run(vec![Event::Add(RequestId(bench.requests), demand)]);
    bench.replies[&bench.requests].clone()
}

#[test]
fn a_million_addresses_at_once_are_refused_before_anything_is_written() {
    for (pool, size, version) in [("10.0.0.0/8", 32, IpVersion::V4), ("fd00::/48", 122, IpVersion::V6)] {
        let mut bench = bench(pool, size, &[]);
        let error = refusal(ask(&mut bench, vec![version; 1_000_000]));
        assert_eq!((error.code, bench.commits.len()), (BAD_REQUEST, 0), "{}", error.message);
    }
}

#[test]
fn more_than_the_block_limit_gives_is_refused_and_what_was_taken_goes_back() {
    for (pool, size, version) in [
        ("10.0.0.0/8", 32, IpVersion::V4),
        ("10.0.0.0/8", 26, IpVersion::V4),
        ("fd00::/48", 122, IpVersion::V6),
    ] {
        let mut bench = bench(pool, size, &[]);
        let error = refusal(ask(&mut bench, vec![version; MOST_ADDRESSES]));
        assert!(error.message.contains("this node has 20 blocks and may have 20"), "{}", error.message);
        // A claim and a release for each of twenty blocks.
        assert!(bench.commits.len() <= 40, "{}", bench.commits.len());
        assert!(bench.handles().is_empty());
        assert!(bench.blocks().iter().all(block::is_empty));
        bench.check();
    }
}

#[test]
fn a_whole_block_of_the_largest_size_is_one_request() {
    let mut bench = bench("10.0.0.0/8", 20, &[]);
    let Reply::Added(taken) = ask(&mut bench, vec![IpVersion::V4; MOST_ADDRESSES]) else { panic!() };
    let addresses: BTreeSet<IpAddr> = taken.iter().map(|taken| taken.address).collect();
    assert_eq!((addresses.len(), bench.commits.len()), (MOST_ADDRESSES, 1));
    bench.check();
}

#[test]
fn a_pool_half_reserved_is_used_in_its_other_half() {
    for half in ["fd00::/49", "fd00:0:0:8000::/49"] {
        let mut bench = bench("fd00::/48", 122, &[half]);
        let Reply::Added(taken) = ask(&mut bench, vec![IpVersion::V6; 70]) else { panic!() };
        assert!(taken.iter().all(|taken| !cidr(half).contains(taken.address)));
    }
}

#[test]
fn a_pool_that_is_wholly_reserved_says_so_at_once() {
    for (pool, size) in [("10.0.0.0/8", 32), ("fd00::/48", 128), ("::/0", 128), ("0.0.0.0/0", 32)] {
        let mut bench = bench(pool, size, &["0.0.0.0/0", "::/0"]);
        let version = cidr(pool).version();
        let error = refusal(ask(&mut bench, vec![version]));
        assert_eq!((error.code, bench.commits.len()), (NOT_SERVED, 0), "{}", error.message);
    }
}

#[test]
fn a_pool_that_is_reserved_but_for_one_address_gives_that_one() {
    // Every network that does not hold 10.200.3.4.
    let around: Vec<String> = (9..=32)
        .map(|prefix| {
            let beside = 0x0ac8_0304_u32 ^ (1 << (32 - prefix));
            format!("{}/{prefix}", std::net::Ipv4Addr::from_bits(beside))
        })
        .collect();
    let around: Vec<&str> = around.iter().map(String::as_str).collect();
    let mut bench = bench("10.0.0.0/8", 32, &around);
    let Reply::Added(taken) = ask(&mut bench, vec![IpVersion::V4]) else { panic!() };
    assert_eq!(taken[0].with_block_prefix(), "10.200.3.4/32");
}
