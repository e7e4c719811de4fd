//! Wire forms of the records: custom resources of `crd.projectcalico.org/v1` and `projectcalico.org/v3`, etcd keys and values.
