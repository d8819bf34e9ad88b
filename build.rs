//! Compiles `proto/` without protoc, and writes the descriptor set that reflection serves.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let descriptors = protox::Compiler::new(["proto"])?
        .include_imports(true)
        .include_source_info(true)
        .open_files([
            "envoy/service/ratelimit/v3/rls.proto",
            "envoy/extensions/common/ratelimit/v3/ratelimit.proto",
            "tollgate/admin/v1/audit.proto",
            "tollgate/admin/v1/buckets.proto",
            "tollgate/admin/v1/keys.proto",
            "tollgate/admin/v1/plans.proto",
            "tollgate/admin/v1/usage.proto",
            "ratelimit/config/ratelimit/v3/rls_conf.proto",
        ])?
        .file_descriptor_set();
    fs::write(out.join("rls_descriptors.bin"), descriptors.encode_to_vec())?;

    // Everything but the rate-limit packages lives in envoy-types already.
    tonic_prost_build::configure()
        .extern_path(".google.protobuf", "::envoy_types::pb::google::protobuf")
        .extern_path(".envoy.config", "::envoy_types::pb::envoy::config")
        .extern_path(".envoy.type", "::envoy_types::pb::envoy::type")
        .compile_well_known_types(true)
        // Those that carry a secret have a `Debug` of their own, in src/proto.rs.
        .skip_debug([
            "tollgate.admin.v1.KeyWithSecret",
            "tollgate.admin.v1.ImportedKey",
        ])
        .include_file("rls.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
