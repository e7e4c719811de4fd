//! IPPool as a custom resource (data model §4).

use super::field::Fields;
use super::{Resource, WireError};
use crate::{AssignmentMode, Encapsulation, Pool, Use};
use serde_json::{Map, Value, json};

impl Encapsulation {
    /// The word of the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "Never",
            Self::Always => "Always",
            Self::CrossSubnet => "CrossSubnet",
        }
    }

    /// Reads the word of the wire; empty means never.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "Never" | "" => Some(Self::Never),
            "Always" => Some(Self::Always),
            "CrossSubnet" => Some(Self::CrossSubnet),
            _ => None,
        }
    }
}

impl Use {
    /// The word of the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Workload => "Workload",
            Self::Tunnel => "Tunnel",
            Self::LoadBalancer => "LoadBalancer",
        }
    }

    /// Reads the word of the wire.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "Workload" => Some(Self::Workload),
            "Tunnel" => Some(Self::Tunnel),
            "LoadBalancer" => Some(Self::LoadBalancer),
            _ => None,
        }
    }
}

impl AssignmentMode {
    /// The word of the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Automatic => "Automatic",
            Self::Manual => "Manual",
        }
    }

    /// Reads the word of the wire; empty means automatic.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "Automatic" | "" => Some(Self::Automatic),
            "Manual" => Some(Self::Manual),
            _ => None,
        }
    }
}

impl Pool {
    /// A pool with Calico's defaults: block size by family, no encapsulation, for workloads and tunnels of every node.
    pub fn with_defaults(name: impl Into<String>, cidr: crate::Cidr) -> Self {
        Self {
            name: name.into(),
            cidr,
            block_size: Self::default_block_size(cidr.version()),
            ipip_mode: Encapsulation::Never,
            vxlan_mode: Encapsulation::Never,
            nat_outgoing: false,
            disabled: false,
            disable_bgp_export: false,
            node_selector: "all()".to_owned(),
            namespace_selector: None,
            allowed_uses: vec![Use::Workload, Use::Tunnel],
            assignment_mode: AssignmentMode::Automatic,
            deleting: false,
            unallocatable: false,
        }
    }

    /// `spec` of the custom resource. Flags are left out when false; conditions are never written.
    pub fn spec_v1(&self) -> Value {
        let mut spec = Map::new();
        spec.insert("cidr".into(), json!(self.cidr.to_string()));
        spec.insert("blockSize".into(), json!(self.block_size));
        spec.insert("ipipMode".into(), json!(self.ipip_mode.as_str()));
        spec.insert("vxlanMode".into(), json!(self.vxlan_mode.as_str()));
        for (field, flag) in [
            ("natOutgoing", self.nat_outgoing),
            ("disabled", self.disabled),
            ("disableBGPExport", self.disable_bgp_export),
        ] {
            if flag {
                spec.insert(field.into(), json!(true));
            }
        }
        spec.insert("nodeSelector".into(), json!(self.node_selector));
        if let Some(selector) = &self.namespace_selector {
            spec.insert("namespaceSelector".into(), json!(selector));
        }
        let uses: Vec<_> = self.allowed_uses.iter().map(|allowed| allowed.as_str()).collect();
        spec.insert("allowedUses".into(), json!(uses));
        spec.insert("assignmentMode".into(), json!(self.assignment_mode.as_str()));
        Value::Object(spec)
    }

    /// The whole custom resource.
    pub fn to_v1(&self) -> Value {
        Resource::POOL.object(&self.name, &self.spec_v1())
    }

    /// Reads the custom resource and applies the defaults.
    ///
    /// # Errors
    /// If the name or CIDR is missing, or a value is of no use (a block size that its family cannot have included).
    pub fn from_v1(object: &Value) -> Result<Self, WireError> {
        let spec = Fields::spec(Resource::POOL, object);
        let name = spec.object_name(object)?;
        let cidr = spec.cidr("cidr")?;
        let encapsulation = "Never, Always or CrossSubnet";
        let block_size = match spec.small("blockSize", 0)? {
            0 => Self::default_block_size(cidr.version()),
            size => u8::try_from(size)
                .ok()
                .filter(|size| Self::block_sizes(cidr.version()).contains(size))
                .ok_or_else(|| {
                spec.invalid("blockSize", &json!(size), "20 to 32 for IPv4, 116 to 128 for IPv6")
            })?,
        };
        let mut allowed_uses = Vec::new();
        for entry in spec.array("allowedUses")? {
            let parsed = entry
                .as_str()
                .and_then(Use::parse)
                .ok_or_else(|| spec.invalid("allowedUses", entry, "Workload, Tunnel or LoadBalancer"))?;
            allowed_uses.push(parsed);
        }
        if allowed_uses.is_empty() {
            allowed_uses = vec![Use::Workload, Use::Tunnel];
        }
        let node_selector = match spec.text("nodeSelector")? {
            "" => "all()",
            selector => selector,
        };
        let namespace_selector = spec.text("namespaceSelector")?;
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
        let unallocatable = conditions.into_iter().flatten().any(|condition| {
            condition.get("type").and_then(Value::as_str) == Some("Allocatable")
                && condition.get("status").and_then(Value::as_str) == Some("False")
        });
        Ok(Self {
            name,
            cidr,
            block_size,
            ipip_mode: spec.parsed("ipipMode", encapsulation, Encapsulation::parse)?,
            vxlan_mode: spec.parsed("vxlanMode", encapsulation, Encapsulation::parse)?,
            nat_outgoing: spec.flag("natOutgoing", false)?,
            disabled: spec.flag("disabled", false)?,
            disable_bgp_export: spec.flag("disableBGPExport", false)?,
            node_selector: node_selector.to_owned(),
            namespace_selector: (!namespace_selector.is_empty()).then(|| namespace_selector.to_owned()),
            allowed_uses,
            assignment_mode: spec.parsed("assignmentMode", "Automatic or Manual", AssignmentMode::parse)?,
            deleting: object.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null()),
            unallocatable,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_pool_reads_and_writes_as_the_example() {
        let object = json!({"apiVersion":"crd.projectcalico.org/v1","kind":"IPPool","metadata":{"name":"blue6"},
            "spec":{"cidr":"fd00:10:244::/112","blockSize":122,"ipipMode":"Never","vxlanMode":"Never",
                    "nodeSelector":"all()","allowedUses":["Workload"],"assignmentMode":"Automatic"}});
        assert_eq!(Pool::from_v1(&object).unwrap().to_v1(), object);
    }

    #[test]
    fn defaults_are_applied_on_reading() {
        let object = json!({"metadata":{"name":"p"},"spec":{"cidr":"10.244.0.0/16","allowedUses":[]}});
        assert_eq!(
            Pool::from_v1(&object).unwrap(),
            Pool::with_defaults("p", "10.244.0.0/16".parse().unwrap())
        );
    }

    #[test]
    fn a_pool_that_is_going_or_unallocatable_is_not_enabled() {
        let going = json!({"metadata":{"name":"p","deletionTimestamp":"2026-08-01T09:00:00Z"},"spec":{"cidr":"10.244.0.0/16"}});
        assert!(!Pool::from_v1(&going).unwrap().is_enabled());
        let overlapping = json!({"metadata":{"name":"p"},"spec":{"cidr":"10.244.0.0/16"},
            "status":{"conditions":[{"type":"Allocatable","status":"False","reason":"CIDROverlap"}]}});
        assert!(!Pool::from_v1(&overlapping).unwrap().is_enabled());
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        let object = json!({"metadata":{"name":"p"},"spec":{"cidr":"10.244.0.0/16","vxlanMode":"Sometimes"}});
        assert_eq!(
            Pool::from_v1(&object).unwrap_err().to_string(),
            "IPPool p has \"Sometimes\" in spec.vxlanMode, which should be Never, Always or CrossSubnet: correct it or delete the object"
        );
        assert!(
            Pool::from_v1(&json!({"metadata":{"name":"p"},"spec":{"cidr":"10.0.0.0/16","blockSize":64}}))
                .is_err()
        );
        for (cidr, size, reads) in [
            ("10.0.0.0/8", 19, false),
            ("10.0.0.0/8", 20, true),
            ("10.0.0.0/8", 32, true),
            ("fd00::/48", 64, false),
            ("fd00::/48", 116, true),
        ] {
            let pool = json!({"metadata":{"name":"p"},"spec":{"cidr":cidr,"blockSize":size}});
            assert_eq!(Pool::from_v1(&pool).is_ok(), reads, "{pool}");
        }
        assert!(Pool::from_v1(&json!({"metadata":{"name":"p"}})).is_err());
        assert!(Pool::from_v1(&json!(null)).is_err());
    }
}
