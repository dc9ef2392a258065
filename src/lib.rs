//! cistern: storage pools for virtual machines on Kubernetes, a CSI driver.
//!
//! `docs/design.md` says what each module is for and which may use which; a test holds the code to it.

pub mod config;
pub mod csi;
pub mod domain;
pub mod kube;
pub mod machine;
pub mod medium;
pub mod node;
pub mod peer;
pub mod pool;
pub mod proto;
pub mod route;
pub mod share;
