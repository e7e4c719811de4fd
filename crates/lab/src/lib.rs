//! The lab: a cluster described by a ContainerLab topology and a kind configuration, its nodes network namespaces.

pub mod api_client;
pub mod cluster;
pub mod controller_manager;
pub mod holder;
pub mod kind_config;
pub mod private_file;
pub mod topology;
pub mod unix_socket;
pub mod yaml;
