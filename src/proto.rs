//! Protobuf types of the rate-limit service, its control planes and the admin API, compiled from `proto/` by `build.rs`.
//! Only `grpc/`, `admin_api/`, `xds/` and the clients that speak gRPC (`cli/bench`, `cli/healthcheck`) use them.

#![allow(
    missing_docs,
    reason = "generated from proto/, which carries the comments"
)]

use std::fmt;

use self::tollgate::admin::v1::{ImportedKey, KeyWithSecret};

include!(concat!(env!("OUT_DIR"), "/rls.rs"));

/// Encoded `FileDescriptorSet` of everything under `proto/`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/rls_descriptors.bin"));

impl fmt::Debug for KeyWithSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyWithSecret({:?})", self.key)
    }
}

impl fmt::Debug for ImportedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImportedKey({:?})", self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::{tollgate::admin::v1::ImportKeysRequest, *};

    #[test]
    fn messages_with_secrets_print_none() {
        let secret = || "tg_a-secret".to_owned();
        let imported = ImportedKey {
            secret: secret(),
            ..ImportedKey::default()
        };
        let whole = ImportKeysRequest {
            keys: vec![imported],
        };
        let made = KeyWithSecret {
            secret: secret(),
            ..KeyWithSecret::default()
        };
        for printed in [format!("{whole:?}"), format!("{made:?}")] {
            assert!(
                !printed.contains("tg_") && printed.contains("(None)"),
                "{printed}"
            );
        }
    }
}
