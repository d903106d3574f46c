//! The nft programs at hand: several versions, because what one prints another may not understand.

use std::sync::LazyLock;

use super::command;

/// The installed nft, and those that the environment variable `NFT_VERSIONS` names, separated by colons. All of them
/// list what we write, on every kernel.
pub(crate) static LISTING: LazyLock<Vec<String>> = LazyLock::new(|| {
    let others = std::env::var("NFT_VERSIONS").unwrap_or_default();
    let others = others.split(':').filter(|it| !it.is_empty());
    ["nft"].into_iter().chain(others).map(str::to_owned).collect()
});

/// Those of them that load what they understand; there is one at least. Before a byte in a key with ranges, nft 1.0.6 puts
/// a conversion that does nothing, and Linux 7.2 refuses that.
///
/// What one of them has loaded, the same one lists: nft 1.0.6 crashes on what nft 1.1.3 notes for itself in a table.
pub(crate) static LOADING: LazyLock<Vec<String>> = LazyLock::new(|| {
    const BYTE_IN_A_KEY_WITH_RANGES: &str = "table ip probe {
        set ranges { type inet_proto . ipv4_addr; flags interval; }
        chain rules { meta l4proto . ip saddr @ranges drop; }
    }";
    let probe = |nft: &&String| {
        let arguments = ["--net", nft.as_str(), "-c", "-f", "-"];
        command::output("unshare", &arguments, BYTE_IN_A_KEY_WITH_RANGES).status.success()
    };
    let loading: Vec<String> = LISTING.iter().filter(probe).cloned().collect();
    assert!(!loading.is_empty(), "no nft here loads into this kernel: NFT_VERSIONS can name more");
    loading
});
