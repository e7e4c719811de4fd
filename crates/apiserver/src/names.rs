//! What names may look like: of objects, and the keys and values of their labels.

use crate::error::FieldError;
use serde_json::json;

fn is_label(text: &str, first: fn(&u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    let (Some(begin), Some(end)) = (bytes.first(), bytes.last()) else { return false };
    first(begin)
        && is_lower_or_digit(end)
        && text.len() <= 63
        && bytes.iter().all(|b| is_lower_or_digit(b) || *b == b'-')
}

fn is_lower_or_digit(byte: &u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// Whether `text` is up to 63 lower-case letters, digits and `-`, with a letter or digit at both ends.
pub fn is_dns1123_label(text: &str) -> bool {
    is_label(text, is_lower_or_digit)
}

/// Like [`is_dns1123_label`], and begins with a letter.
pub fn is_dns1035_label(text: &str) -> bool {
    is_label(text, u8::is_ascii_lowercase)
}

/// Whether `text` is up to 253 characters of such parts, joined by dots. Parts may be longer than 63.
pub fn is_dns1123_subdomain(text: &str) -> bool {
    let is_part = |part: &str| {
        let bytes = part.as_bytes();
        bytes.first().is_some_and(is_lower_or_digit)
            && bytes.last().is_some_and(is_lower_or_digit)
            && bytes.iter().all(|b| is_lower_or_digit(b) || *b == b'-')
    };
    text.len() <= 253 && text.split('.').all(is_part)
}

/// Whether `key` is `name` or `prefix/name`, the prefix a DNS subdomain and the name of up to 63 characters.
pub fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    !name.is_empty() && is_label_value(name) && prefix.is_none_or(is_dns1123_subdomain)
}

/// Whether `value` is empty or up to 63 letters, digits, `-`, `_` and `.`, with letters or digits at both ends.
pub fn is_label_value(value: &str) -> bool {
    let bytes = value.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return true };
    value.len() <= 63
        && first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

/// What is wrong with the name of an object.
pub fn name_errors(group: &str, resource: &str, name: &str) -> Vec<FieldError> {
    const FIELD: &str = "metadata.name";
    if name.is_empty() {
        return vec![FieldError::required(FIELD, "name or generateName is required")];
    }
    let (fits, detail) = match (group, resource) {
        ("rbac.authorization.k8s.io", _) => (
            !matches!(name, "." | "..") && !name.contains(['/', '%']),
            "may not be '.' or '..' and may not contain '/' or '%'",
        ),
        ("", "namespaces") => (
            is_dns1123_label(name),
            "must be a lowercase RFC 1123 label: at most 63 lower-case letters, digits and '-', with a letter or digit at both ends",
        ),
        ("", "services") => (
            is_dns1035_label(name),
            "must be a DNS-1035 label: at most 63 lower-case letters, digits and '-', a letter first and a letter or digit last",
        ),
        _ => (
            is_dns1123_subdomain(name),
            "must be a lowercase RFC 1123 subdomain: at most 253 lower-case letters, digits, '-' and '.', with a letter or digit at both ends of each part",
        ),
    };
    if fits { Vec::new() } else { vec![FieldError::invalid(FIELD, &json!(name), detail)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_their_kind() {
        let fine = [
            ("", "pods", "web-0.x"),
            ("", "namespaces", "kube-system"),
            ("", "services", "kubernetes"),
            ("rbac.authorization.k8s.io", "clusterroles", "system:node"),
            ("crd.projectcalico.org", "blockaffinities", "ipam-block-affinity-192-168-18-64-26"),
        ];
        for (group, resource, name) in fine {
            assert!(name_errors(group, resource, name).is_empty(), "{resource} {name}");
        }
        let long = "a".repeat(254);
        let wrong = [
            ("", "pods", "Web"),
            ("", "pods", "-a"),
            ("", "pods", "a..b"),
            ("", "pods", "../../etc"),
            ("", "pods", ""),
            ("", "pods", long.as_str()),
            ("", "namespaces", "a.b"),
            ("", "services", "1a"),
            ("rbac.authorization.k8s.io", "roles", "a/b"),
        ];
        for (group, resource, name) in wrong {
            assert_eq!(name_errors(group, resource, name).len(), 1, "{resource} {name}");
        }
    }
}
