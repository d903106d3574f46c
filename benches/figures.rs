//! What the benchmarks share: clusters of a given shape, the yardsticks, and the table of figures.

pub(crate) mod program;
pub(crate) mod shape;
pub(crate) mod table;
pub(crate) mod yardstick;
