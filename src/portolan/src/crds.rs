//! `portolan crds`.

use std::io::Write;

use anyhow::Context;

/// Print the CRDs, one YAML document each: for a cluster that is not managed by Helm.
#[derive(Debug, clap::Args)]
pub(crate) struct CrdsArgs {}

impl CrdsArgs {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let Self {} = self;
        let mut out = std::io::stdout().lock();
        for manifest in portolan_api::crds::manifests() {
            let yaml = serde_saphyr::to_string(&manifest).context("render a CRD")?;
            write!(out, "---\n{yaml}").context("print a CRD")?;
        }
        Ok(())
    }
}
