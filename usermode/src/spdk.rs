//! SPDK by the command line.

use anyhow::{Context as _, Result, ensure};
use backstores::spdk::{self, SpdkConfig};

use crate::cli::SpdkArgs;

/// A running SPDK, or none. Dropping it ends SPDK, if that was not done before.
pub(crate) struct Spdk(());

impl Spdk {
    /// Checks the arguments. Starts nothing.
    ///
    /// # Errors
    ///
    /// This build has no SPDK; options that mean nothing without another.
    pub(crate) fn check(args: &SpdkArgs) -> Result<()> {
        let wanted = args.spdk_config.is_some() || args.spdk_rpc.is_some();
        let sized = args.spdk_mem.is_some() || args.spdk_huge;
        ensure!(spdk::BUILT_IN || !(wanted || sized), "{}", spdk::WITHOUT);
        ensure!(
            wanted || !sized,
            "SPDK is started by --spdk-config or --spdk-rpc"
        );
        Ok(())
    }

    /// Starts SPDK if that is asked for. After the signals were blocked: it has threads.
    ///
    /// # Errors
    ///
    /// It could not start.
    pub(crate) fn start(args: &SpdkArgs) -> Result<Self> {
        if args.spdk_config.is_some() || args.spdk_rpc.is_some() {
            let mem = args.spdk_mem.unwrap_or(spdk::DEFAULT_MEM_MIB);
            spdk::start(&SpdkConfig {
                json: args.spdk_config.clone(),
                rpc: args.spdk_rpc.clone(),
                mem_mib: (!args.spdk_huge).then_some(mem),
            })
            .context("SPDK could not start")?;
        }
        Ok(Self(()))
    }
}

impl Drop for Spdk {
    fn drop(&mut self) {
        if !spdk::exit() {
            log::error!("SPDK did not end cleanly");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_it_says_so() {
        let args = SpdkArgs {
            spdk_rpc: Some("rpc.sock".into()),
            ..SpdkArgs::default()
        };
        assert_eq!(Spdk::check(&args).is_ok(), spdk::BUILT_IN);
        assert!(Spdk::check(&SpdkArgs::default()).is_ok());
        let only_memory = SpdkArgs {
            spdk_mem: Some(512),
            ..SpdkArgs::default()
        };
        let why = Spdk::check(&only_memory).unwrap_err().to_string();
        assert_eq!(why.contains("without SPDK"), !spdk::BUILT_IN, "{why}");
    }
}
