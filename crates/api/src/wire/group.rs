//! The two API groups that the custom resources may live in, and what differs between them (data model §1, §12).

use super::Resource;
use serde_json::{Value, json};

/// An API group that holds Calico's custom resources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Group {
    /// `crd.projectcalico.org/v1`, the group of all releases so far.
    #[default]
    V1,
    /// `projectcalico.org/v3` as custom resources of its own, without Calico's aggregated server.
    V3,
}

impl Group {
    /// The group that a setting names: `projectcalico.org/v3` in any case is v3, anything else v1; `None` if nothing
    /// is set, and the cluster is to be asked.
    pub fn configured(setting: &str) -> Option<Self> {
        match setting {
            "" => None,
            name if name.eq_ignore_ascii_case(Self::V3.api_version()) => Some(Self::V3),
            _ => Some(Self::V1),
        }
    }

    /// The group to use where these groups are served. Served beside v1, v3 is only another view of it.
    pub fn served<'a>(mut groups: impl Iterator<Item = &'a str> + Clone) -> Self {
        let v1 = groups.clone().any(|name| name == "crd.projectcalico.org");
        if !v1 && groups.any(|name| name == "projectcalico.org") { Self::V3 } else { Self::V1 }
    }

    /// `apiVersion` of its objects.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::V1 => super::API_VERSION_V1,
            Self::V3 => "projectcalico.org/v3",
        }
    }

    /// Kind and plural of a resource in this group: the IPAM configuration has another name in v3.
    pub fn resource(self, resource: Resource) -> Resource {
        match self {
            Self::V3 if resource == Resource::CONFIG => {
                Resource { kind: "IPAMConfiguration", plural: "ipamconfigurations" }
            }
            _ => resource,
        }
    }

    /// REST path of a collection: `/apis/<apiVersion>/<plural>`.
    pub fn path(self, resource: Resource) -> String {
        format!("/apis/{}/{}", self.api_version(), self.resource(resource).plural)
    }

    /// An object as written by `to_v1`, in the form of this group.
    #[must_use]
    pub fn form(self, mut object: Value) -> Value {
        if self == Self::V1 {
            return object;
        }
        object["apiVersion"] = json!(self.api_version());
        let kind = object["kind"].as_str().unwrap_or_default();
        if kind == Resource::CONFIG.kind {
            object["kind"] = json!(self.resource(Resource::CONFIG).kind);
        } else if kind == Resource::AFFINITY.kind {
            let deleted = object["spec"]["deleted"] == "true";
            object["spec"]["deleted"] = json!(deleted);
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Affinity, AffinityNaming, AffinityState, Block, IpamConfig, Owner};

    #[test]
    fn a_setting_decides_and_otherwise_what_is_served() {
        assert_eq!(Group::configured(""), None);
        assert_eq!(Group::configured("ProjectCalico.org/V3"), Some(Group::V3));
        assert_eq!(Group::configured("projectcalico.org/v1"), Some(Group::V1));
        let served = |groups: &[&'static str]| Group::served(groups.iter().copied());
        assert_eq!(served(&["apps", "projectcalico.org"]), Group::V3);
        assert_eq!(served(&["projectcalico.org", "crd.projectcalico.org"]), Group::V1);
        assert_eq!(served(&["apps"]), Group::V1);
    }

    #[test]
    fn the_newer_group_has_another_configuration_and_a_flag_for_a_text() {
        assert_eq!(Group::V3.path(Resource::CONFIG), "/apis/projectcalico.org/v3/ipamconfigurations");
        assert_eq!(Group::V1.path(Resource::CONFIG), "/apis/crd.projectcalico.org/v1/ipamconfigs");
        assert_eq!(Group::V3.form(IpamConfig::default().to_v1())["kind"], "IPAMConfiguration");
        for deleted in [false, true] {
            let affinity = Affinity {
                owner: Owner::host("n"),
                cidr: "fd00:10:244::1c0/122".parse().unwrap(),
                state: AffinityState::Confirmed,
                deleted,
            };
            let object = affinity.to_v1(AffinityNaming::PerNode);
            assert_eq!(object["spec"]["deleted"], deleted.to_string());
            let newer = Group::V3.form(object);
            assert_eq!(newer["spec"]["deleted"], deleted);
            assert_eq!(newer["apiVersion"], "projectcalico.org/v3");
            assert_eq!(Affinity::from_v1(&newer), Ok(affinity));
        }
    }

    #[test]
    fn a_block_reads_back_from_either_group() {
        let object = json!({"kind": "IPAMBlock", "metadata": {"name": "10-0-0-0-31"}, "spec": {"cidr": "10.0.0.0/31",
            "allocations": [null, 0], "unallocated": [0], "attributes": [{"releasedAt": "2026-08-01T10:20:00Z"}]}});
        let block = Block::from_v1(&object).unwrap();
        assert_eq!(Block::from_v1(&Group::V3.form(block.to_v1())), Ok(block));
    }
}
