//! Who we are.

/// The version of this program.
pub const OWN: &str = env!("CARGO_PKG_VERSION");

/// The Kubernetes release whose kube-proxy's behaviour is followed.
pub const KUBERNETES: &str = "1.36.2";

/// One line, for `--version`.
pub fn short() -> String {
    format!("kube-ferry v{OWN} (follows kube-proxy v{KUBERNETES})")
}

/// All that is known, for `--version=raw`.
pub fn raw() -> String {
    format!(
        "version={OWN} kubernetes={KUBERNETES} platform={}/{}",
        std::env::consts::OS,
        std::env::consts::ARCH
    )
}
