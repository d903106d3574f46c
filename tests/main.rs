//! The one integration test binary. The modules carry `cfg(test)` so that clippy knows them as tests.

#[cfg(test)]
mod deploy;
