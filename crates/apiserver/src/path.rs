//! What a request's path and query name.

/// Query parameters, decoded, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Takes the text after `?` apart. Never fails: what has no `=` has an empty value.
    pub fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key, true), decode(value, true))
        });
        Self(pairs.collect())
    }

    /// The first value of a parameter; an empty one counts as absent.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, value)| name == key && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// Whether a parameter is set to `true` or `1`.
    pub fn is_true(&self, key: &str) -> bool {
        matches!(self.get(key), Some("true" | "1" | "True" | "t"))
    }
}

/// Undoes percent-encoding; a broken sequence stays as it is, bytes that are no UTF-8 are replaced.
fn decode(text: &str, plus_is_space: bool) -> String {
    if !text.bytes().any(|byte| byte == b'%' || byte == b'+') {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let hex = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let pair = if byte == b'%' { hex(at + 1).zip(hex(at + 2)) } else { None };
        match pair.and_then(|(high, low)| u8::try_from(high * 16 + low).ok()) {
            Some(value) => {
                decoded.push(value);
                at += 3;
            }
            None => {
                decoded.push(if byte == b'+' && plus_is_space { b' ' } else { byte });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// An API path below a group's version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Empty for the core group.
    pub group: String,
    /// As `v1`.
    pub version: String,
    /// Namespace of the path, if it has one.
    pub namespace: Option<String>,
    /// Plural name, as `pods`.
    pub resource: String,
    /// One object, if the path names one.
    pub name: Option<String>,
    /// As `status` or `log`; anything below it is kept, as `proxy/a/b`.
    pub subresource: Option<String>,
}

impl Target {
    /// Parses `/api/v1/…` and `/apis/<group>/<version>/…` down to a resource; other paths are none.
    pub fn parse(path: &str) -> Option<Self> {
        let mut segments: Vec<String> =
            path.trim_matches('/').split('/').map(|segment| decode(segment, false)).collect();
        // A slash that was written as %2F would otherwise reach into another object's key.
        let climbs = |segment: &String| matches!(segment.as_str(), "" | "." | "..") || segment.contains('/');
        if segments.iter().any(climbs) {
            return None;
        }
        let (group, version, rest) = match segments.first().map(String::as_str)? {
            "api" if segments.len() > 2 => (String::new(), segments.remove(1), segments.split_off(1)),
            "apis" if segments.len() > 3 => {
                let rest = segments.split_off(3);
                let version = segments.pop()?;
                (segments.pop()?, version, rest)
            }
            _ => return None,
        };
        let mut target = Self { group, version, ..Self::default() };
        let mut rest = rest.into_iter();
        let first = rest.next()?;
        let mut after: Vec<String> = rest.collect();
        let of_a_namespace =
            after.len() >= 2 && !(after.len() == 2 && matches!(after[1].as_str(), "status" | "finalize"));
        if first == "namespaces" && of_a_namespace {
            target.namespace = Some(after.remove(0));
            target.resource = after.remove(0);
        } else {
            target.resource = first;
        }
        let mut after = after.into_iter();
        target.name = after.next();
        let below: Vec<String> = after.collect();
        target.subresource = (!below.is_empty()).then(|| below.join("/"));
        Some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resource, namespace, name and subresource, with `-` for none.
    fn parts(path: &str) -> [String; 4] {
        let target = Target::parse(path).unwrap();
        let or_none = |part: Option<String>| part.unwrap_or_else(|| "-".to_owned());
        [target.resource, or_none(target.namespace), or_none(target.name), or_none(target.subresource)]
    }

    #[test]
    fn namespaces_are_both_a_resource_and_a_scope() {
        assert_eq!(parts("/api/v1/namespaces"), ["namespaces", "-", "-", "-"]);
        assert_eq!(parts("/api/v1/namespaces/a"), ["namespaces", "-", "a", "-"]);
        assert_eq!(parts("/api/v1/namespaces/a/finalize"), ["namespaces", "-", "a", "finalize"]);
        assert_eq!(parts("/api/v1/namespaces/a/pods"), ["pods", "a", "-", "-"]);
        assert_eq!(parts("/api/v1/namespaces/a/pods/p/log"), ["pods", "a", "p", "log"]);
    }

    #[test]
    fn groups_have_a_path_of_their_own() {
        let target = Target::parse("/apis/apps/v1/namespaces/a/deployments/d/scale").unwrap();
        assert_eq!((target.group.as_str(), target.version.as_str()), ("apps", "v1"));
        assert_eq!(target.subresource.as_deref(), Some("scale"));
    }

    #[test]
    fn paths_that_climb_or_name_nothing_are_refused() {
        for path in [
            "/api/v1",
            "/apis/apps/v1",
            "/api/v1/pods/../x",
            "/api/v1/pods/%2e%2e",
            "/api/v1/pods/a%2Fb",
            "/api//pods",
            "/x",
        ] {
            assert_eq!(Target::parse(path), None, "{path}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("&a=x%3Dy%2Cz+w&b&c=%zz&watch=true");
        assert_eq!(query.get("a"), Some("x=y,z w"));
        assert_eq!(query.get("b"), None);
        assert_eq!(query.get("c"), Some("%zz"));
        assert!(query.is_true("watch"));
    }
}
