//! Driver for a Kubernetes API: kube-apiserver or the embedded one.
