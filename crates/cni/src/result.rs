//! The result of an ADD, in the form of each version of the specification.

use crate::error::{CniError, code};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// What an ADD made. Written by [`AddResult::render`] in the caller's version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddResult {
    /// Interfaces made, host end first; an IPAM plugin lists none.
    pub interfaces: Vec<Interface>,
    /// Addresses given, IPv4 first.
    pub ips: Vec<Address>,
    /// Routes, as address management named them.
    pub routes: Vec<Route>,
}

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes; 0: not set by us.
    #[serde(skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// Path of its network namespace; empty for the host's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands fields over by reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// One address with its prefix length.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Address {
    /// `192.168.12.69/26`.
    pub address: String,
    /// Index into `interfaces`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<u32>,
    /// Next hop, which some main plugins want to be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

impl Address {
    /// The address without its prefix length.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.address.split_once('/').map_or(self.address.as_str(), |(ip, _)| ip).parse().ok()
    }
}

/// One route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Route {
    /// Destination network.
    pub dst: String,
}

impl AddResult {
    /// Reads a result of any version.
    ///
    /// # Errors
    /// Code 6 if it is not one.
    pub fn parse(text: &[u8]) -> Result<Self, CniError> {
        let value: Value = serde_json::from_slice(text)
            .map_err(|error| CniError::new(code::DECODE, "a result is not JSON").because(&error))?;
        Self::from_value(value)
    }

    /// As [`AddResult::parse`], of decoded JSON.
    ///
    /// # Errors
    /// Code 6 if it is not a result.
    pub fn from_value(value: Value) -> Result<Self, CniError> {
        let undecodable = |error: &dyn std::fmt::Display| {
            CniError::new(code::DECODE, "a result is malformed").because(error)
        };
        // Up to 0.2.0 there was one address a family, under a key of its own.
        if value.get("ip4").is_some() || value.get("ip6").is_some() {
            let mut result = Self::default();
            for family in ["ip4", "ip6"].iter().filter_map(|key| value.get(key)) {
                let address = family.get("ip").and_then(Value::as_str).unwrap_or_default().to_owned();
                let gateway =
                    family.get("gateway").and_then(Value::as_str).and_then(|text| text.parse().ok());
                result.ips.push(Address { address, interface: None, gateway });
                if let Some(routes) = family.get("routes") {
                    let routes: Vec<Route> =
                        serde_json::from_value(routes.clone()).map_err(|error| undecodable(&error))?;
                    result.routes.extend(routes);
                }
            }
            return Ok(result);
        }
        serde_json::from_value(value).map_err(|error| undecodable(&error))
    }

    /// The JSON of a version, one of [`SUPPORTED_VERSIONS`](crate::config::SUPPORTED_VERSIONS).
    #[must_use]
    pub fn render(&self, version: &str) -> Value {
        let mut out = Map::new();
        out.insert("cniVersion".to_owned(), json!(version));
        if matches!(version, "0.1.0" | "0.2.0") {
            for (key, is_v4) in [("ip4", true), ("ip6", false)] {
                let mine = |text: &str| text.contains(':') != is_v4;
                let Some(found) = self.ips.iter().find(|found| mine(&found.address)) else { continue };
                let mut family = Map::new();
                family.insert("ip".to_owned(), json!(found.address));
                if let Some(gateway) = found.gateway {
                    family.insert("gateway".to_owned(), json!(gateway));
                }
                let routes: Vec<&Route> = self.routes.iter().filter(|route| mine(&route.dst)).collect();
                if !routes.is_empty() {
                    family.insert("routes".to_owned(), json!(routes));
                }
                out.insert(key.to_owned(), Value::Object(family));
            }
            out.insert("dns".to_owned(), json!({}));
            return Value::Object(out);
        }
        let is_early = version.starts_with("0.");
        if !self.interfaces.is_empty() {
            let mut interfaces = json!(self.interfaces);
            if version != "1.1.0"
                && let Some(list) = interfaces.as_array_mut()
            {
                // The MTU of an interface came with 1.1.0; Calico prints it in 1.0.0 too, older ones do not have it.
                for interface in list.iter_mut().filter_map(Value::as_object_mut).filter(|_| is_early) {
                    interface.remove("mtu");
                }
            }
            out.insert("interfaces".to_owned(), interfaces);
        }
        if !self.ips.is_empty() {
            let ips: Vec<Value> = self
                .ips
                .iter()
                .map(|found| {
                    let mut ip = json!(found);
                    if let (true, Some(ip)) = (is_early, ip.as_object_mut()) {
                        let family = if found.address.contains(':') { "6" } else { "4" };
                        ip.insert("version".to_owned(), json!(family));
                    }
                    ip
                })
                .collect();
            out.insert("ips".to_owned(), Value::Array(ips));
        }
        if !self.routes.is_empty() {
            out.insert("routes".to_owned(), json!(self.routes));
        }
        if is_early {
            out.insert("dns".to_owned(), json!({}));
        }
        Value::Object(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dual() -> AddResult {
        let text = br#"{"cniVersion":"1.0.0",
            "ips":[{"address":"192.168.12.69/26"},{"address":"fd00::9:45/122"}],
            "routes":[{"dst":"192.168.12.69/26"},{"dst":"fd00::9:45/122"}]}"#;
        AddResult::parse(text).unwrap()
    }

    #[test]
    fn each_version_has_its_form() {
        let of = |version: &str| dual().render(version).to_string();
        assert_eq!(
            of("1.0.0"),
            r#"{"cniVersion":"1.0.0","ips":[{"address":"192.168.12.69/26"},{"address":"fd00::9:45/122"}],"routes":[{"dst":"192.168.12.69/26"},{"dst":"fd00::9:45/122"}]}"#
        );
        assert_eq!(
            of("0.3.1"),
            r#"{"cniVersion":"0.3.1","dns":{},"ips":[{"address":"192.168.12.69/26","version":"4"},{"address":"fd00::9:45/122","version":"6"}],"routes":[{"dst":"192.168.12.69/26"},{"dst":"fd00::9:45/122"}]}"#
        );
        assert_eq!(
            of("0.2.0"),
            r#"{"cniVersion":"0.2.0","dns":{},"ip4":{"ip":"192.168.12.69/26","routes":[{"dst":"192.168.12.69/26"}]},"ip6":{"ip":"fd00::9:45/122","routes":[{"dst":"fd00::9:45/122"}]}}"#
        );
    }

    #[test]
    fn what_is_written_is_read_again_in_every_version() {
        for version in crate::config::SUPPORTED_VERSIONS {
            assert_eq!(AddResult::from_value(dual().render(version)).unwrap(), dual(), "{version}");
        }
    }

    #[test]
    fn both_families_off_is_an_empty_result() {
        assert_eq!(AddResult::default().render("1.0.0").to_string(), r#"{"cniVersion":"1.0.0"}"#);
    }
}
