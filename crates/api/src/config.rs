//! The cluster-wide IPAM configuration singleton (data model §8).

/// Cluster-wide IPAM configuration. `Default` is what holds where no object exists; a read never writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpamConfig {
    /// No allocation from blocks not affine to the node.
    pub strict_affinity: bool,
    /// Nodes may claim new blocks.
    pub auto_allocate_blocks: bool,
    /// Blocks a node may own per IP version; 0 means the built-in 20.
    pub max_blocks_per_host: u32,
    /// `Enabled`, `Disabled` or absent (= enabled), verbatim.
    pub kube_virt_vm_address_persistence: Option<String>,
    /// Minimum seconds between release and re-use, 0..=1200.
    pub ip_cooldown_seconds: u32,
}

impl Default for IpamConfig {
    fn default() -> Self {
        Self {
            strict_affinity: false,
            auto_allocate_blocks: true,
            max_blocks_per_host: 0,
            kube_virt_vm_address_persistence: Some("Enabled".to_owned()),
            ip_cooldown_seconds: 0,
        }
    }
}
