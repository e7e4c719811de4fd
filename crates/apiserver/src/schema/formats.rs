//! The formats of strings that are checked; others pass, as they do in Kubernetes.

use base64::Engine;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Whether `text` has this format. A format that is not known is no reason to refuse.
pub(super) fn is(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => is_date_time(text),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(text),
        "mac" => is_mac(text),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => uuid::Uuid::try_parse(text).is_ok(),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "hostname" => crate::names::is_dns1123_subdomain(&text.to_ascii_lowercase()),
        "uri" => text.split_once(':').is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty()),
        _ => true,
    }
}

fn is_date_time(text: &str) -> bool {
    text.contains(['T', 't']) && text.parse::<jiff::Timestamp>().is_ok()
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let Ok(length) = length.parse::<u8>() else { return false };
    address.parse::<Ipv4Addr>().is_ok() && length <= 32
        || address.parse::<Ipv6Addr>().is_ok() && length <= 128
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    matches!(parts.len(), 6 | 8)
        && parts.iter().all(|part| part.len() == 2 && u8::from_str_radix(part, 16).is_ok())
}

#[cfg(test)]
mod tests {
    use super::is;

    #[test]
    fn known_formats_are_checked_and_others_pass() {
        assert!(is("date-time", "2026-01-01T00:00:00Z"));
        assert!(!is("date-time", "2026-01-01"));
        assert!(is("cidr", "10.0.0.0/8"));
        assert!(!is("cidr", "10.0.0.0/33"));
        assert!(is("ipv6", "fd00::1"));
        assert!(!is("ipv4", "fd00::1"));
        assert!(is("byte", "YQ=="));
        assert!(!is("uuid", "x"));
        assert!(is("mac", "ee:ee:ee:ee:ee:ee"));
        assert!(is("int64", "anything"));
    }
}
