//! Generates the gRPC services of the tests. No `protoc`: protox reads the files.

use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let protos = Path::new("../shared/wire/dialects");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    for version in ["v1", "v2"] {
        let file = protos.join(format!("ppl-{version}.proto"));
        println!("cargo::rerun-if-changed={}", file.display());
        let out = out.join(version);
        std::fs::create_dir_all(&out)?;
        // Both have one package, and so one file name.
        tonic_prost_build::configure()
            .build_client(false)
            .build_transport(false)
            .out_dir(out)
            .compile_fds(protox::compile([file], [protos])?)?;
    }
    Ok(())
}
