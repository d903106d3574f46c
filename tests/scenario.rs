//! Scenario files and their runner. A file tells one story to people who know Kubernetes; `README` of the format:
//! [`story`].

pub(crate) mod datapath;
mod in_ipvs;
mod memory;
mod objects;
mod packets;
pub(crate) mod run;
mod story;
pub(crate) mod traffic;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use story::Story;

/// Three tests for each file, so that they run in parallel and can be picked by name: `scenario::NAME` with real packets,
/// `scenario::walked::NAME` in memory. Both end with a restart that must write nothing. A third, `scenario::ipvs::NAME`, is
/// the first in IPVS mode; it is ignored unless it is asked for, because it needs a kernel with IPVS (`make test-ipvs`).
macro_rules! scenarios {
    ($($name:ident)*) => {
        const LISTED: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                packets::play(&load(stringify!($name)));
            }
        )*
        mod walked {
            $(
                #[test]
                fn $name() {
                    super::memory::play(&super::load(stringify!($name)));
                }
            )*
        }
        mod ipvs {
            $(
                #[test]
                #[ignore = "needs a kernel with IPVS: make test-ipvs"]
                fn $name() {
                    super::in_ipvs::play(super::load(stringify!($name)));
                }
            )*
        }
    };
}

include!("scenario/list.rs");

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios")
}

fn load(test: &str) -> Story {
    let path = directory().join(test.replace('_', "-")).with_extension("txt");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    Story::parse(test, &text).unwrap_or_else(|why| panic!("{}:{why}", path.display()))
}

#[test]
fn every_file_is_listed_and_makes_sense() {
    let files = std::fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|it| it == "txt"));
    let names: BTreeSet<String> =
        files.map(|path| path.file_stem().unwrap().to_str().unwrap().replace('-', "_")).collect();
    let listed: BTreeSet<String> = LISTED.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(names, listed, "tests/scenarios and tests/scenario/list.rs differ");
    for name in &names {
        let story = load(name);
        assert!(story.asks_something(), "{name} expects nothing");
        run::rehearse(&story).unwrap_or_else(|why| panic!("tests/scenarios/{name}:{why}"));
    }
}

/// The README of the scenarios says what is covered where: it names every file, and none that does not exist.
#[test]
fn the_readme_names_every_file() {
    let text = std::fs::read_to_string(directory().join("README.md")).unwrap();
    let quoted = text.split('`').skip(1).step_by(2);
    let named: BTreeSet<String> =
        quoted.filter_map(|it| it.strip_suffix(".txt")).map(|it| it.replace('-', "_")).collect();
    let listed: BTreeSet<String> = LISTED.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(named, listed, "tests/scenarios/README.md and tests/scenario/list.rs differ");
}
