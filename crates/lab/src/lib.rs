//! The lab: a cluster described by a ContainerLab topology and a kind configuration, its nodes network namespaces.

pub mod api_client;
pub mod controller_manager;
pub mod holder;
pub mod unix_socket;
