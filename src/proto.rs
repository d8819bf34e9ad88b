//! Protobuf types of the rate-limit service, its control planes and the admin API, compiled from `proto/` by `build.rs`.
//! Only `grpc/`, `admin_api/`, `xds/` and the clients that speak gRPC (`cli/bench`, `cli/healthcheck`) use them.

#![allow(
    missing_docs,
    reason = "generated from proto/, which carries the comments"
)]

include!(concat!(env!("OUT_DIR"), "/rls.rs"));

/// Encoded `FileDescriptorSet` of everything under `proto/`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/rls_descriptors.bin"));
