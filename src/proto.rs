//! The messages, servers and clients that `build.rs` makes of `proto/*.proto`. Nothing here is written by hand, and
//! nothing but the doors (`csi`, `peer`, `route`) may use it: below them there are only domain types.
//!
//! The requests' `Debug` shows their secrets: no request goes into a log or an error as it is.

// What generators write is not held to the rules of what people write.
#![allow(missing_docs, rustdoc::all, clippy::all, clippy::pedantic)]

/// What kubelet, the sidecars and csi-sanity speak with the driver (`proto/csi.proto`).
pub mod csi {
    pub mod v1 {
        tonic::include_proto!("csi.v1");
    }
}

/// How the driver makes itself known to kubelet (`proto/registration.proto`).
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// What CSI has no word for (`proto/cistern.proto`).
pub mod internal {
    tonic::include_proto!("cistern.v1");
}
