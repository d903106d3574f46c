//! The one integration test binary. The modules carry `cfg(test)` so that clippy knows them as tests.

#[cfg(test)]
mod chaos;
#[cfg(test)]
mod cleanup;
#[cfg(test)]
mod codec;
#[cfg(test)]
mod command_line;
#[cfg(test)]
mod deploy;
#[cfg(test)]
mod drift;
#[cfg(test)]
mod ipvs;
#[cfg(test)]
mod operate;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod real_input;
#[cfg(test)]
mod render;
#[cfg(test)]
mod resilience;
#[cfg(test)]
mod scenario;
#[cfg(test)]
mod serve;
#[cfg(test)]
mod start_up;
#[cfg(test)]
mod support;
#[cfg(test)]
mod watch;
#[cfg(test)]
mod world;
