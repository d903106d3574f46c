//! Kubernetes objects as they arrive (slim serde types), and their conversion into the model's nouns.
//!
//! In comes JSON or YAML that may hold anything; out come [`crate::model::Change`]s and
//! [`crate::model::Skipped`]. Pure: which node this is arrives as an argument.
