//! `sgv/`: the pools of commands' memory.

use super::ScstTree;
use crate::sgv::{SgvPool, SgvPools};
use kshim::error::{Result, code};
use kshim::kobject::Attr;
use std::sync::Arc;

/// An attribute of the pool `name`.
fn stats_attr(sgv: &Arc<SgvPools>, name: &str) -> Attr {
    fn pool<T>(sgv: &SgvPools, name: &str, f: impl FnOnce(SgvPool<'_>) -> T) -> Result<T> {
        let found = sgv.pools().find(|p| p.name() == name);
        found.map(f).ok_or(code::ENODEV)
    }
    let (show, show_name) = (Arc::clone(sgv), name.to_owned());
    let (store, store_name) = (Arc::clone(sgv), name.to_owned());
    Attr::rw(
        "stats",
        move || pool(&show, &show_name, |p| p.stats_text()),
        move |_| pool(&store, &store_name, |p| p.reset_stats()),
    )
    .direct()
}

impl ScstTree {
    #[doc(alias = "scst_add_sgv_kobj")]
    pub(super) fn add_sgv(&self, sgv: &Arc<SgvPools>) -> Result {
        let (show, store) = (Arc::clone(sgv), Arc::clone(sgv));
        let global = Attr::rw(
            "global_stats",
            move || Ok(show.global_stats().to_string()),
            move |_| {
                store.reset_global_stats();
                Ok(())
            },
        );
        self.sgv().add_attr(global.direct())?;
        for pool in sgv.pools() {
            let dir = self.sgv().add(pool.name())?;
            dir.add_attr(stats_attr(sgv, pool.name()))?;
        }
        Ok(())
    }
}
