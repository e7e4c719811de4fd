//! The lab: a cluster described by a ContainerLab topology and a kind configuration, its nodes network namespaces.

pub mod bootstrap;
pub mod cluster;
pub mod console;
pub mod containerlab;
pub mod controller_manager;
pub mod deploy;
pub mod destroy;
pub mod env;
pub mod holder;
pub mod identities;
pub mod kind;
pub mod kind_config;
pub mod known;
pub mod kubeconfig;
pub mod kubelet;
pub mod pki;
pub mod private_file;
pub mod records_guard;
pub mod standalone;
pub mod supervisor;
pub mod table;
pub mod topology;
pub mod unix_socket;
pub mod yaml;
