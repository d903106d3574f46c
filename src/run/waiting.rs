//! Says in the log what a start waits for, for as long as it does.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::serve::SharedHealth;

/// A start that takes longer than this says why, and again and again.
const PATIENCE: Duration = Duration::from_secs(15);

/// Ends with the first complete sync.
pub(super) async fn tell(health: SharedHealth) {
    let began = Instant::now();
    loop {
        tokio::time::sleep(PATIENCE).await;
        let missing = health.missing();
        if missing.is_empty() {
            return;
        }
        let waited = began.elapsed().as_secs();
        warn!(
            waited_secs = waited,
            missing = missing.join(", "),
            "not ready yet; traffic goes by the rules that are in the kernel from before, if any"
        );
    }
}
