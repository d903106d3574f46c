//! What was meant by a name that does not exist: pure.

/// How many mistakes a name may have and still be taken for another one.
const MISTAKES: usize = 2;

/// The name that was probably meant: written in another case, or with up to two mistakes.
pub(super) fn nearest<N: AsRef<str>>(written: &str, names: impl Iterator<Item = N>) -> Option<N> {
    let written = written.to_lowercase();
    let far = |name: &N| distance(&written, &name.as_ref().to_lowercase());
    let (near, name) = names.map(|name| (far(&name), name)).min_by_key(|(far, _)| *far)?;
    // Of a short name two mistakes leave too little to know it by.
    (near <= MISTAKES && 2 * near <= name.as_ref().len()).then_some(name)
}

/// How many characters have to be put in, taken out or replaced to make one word of the other.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (index, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(row.first_mut().unwrap_or(&mut 0), index + 1);
        let mut left = index + 1;
        for (above, b) in row.iter_mut().skip(1).zip(to.chars()) {
            let best = (diagonal + usize::from(a != b)).min(left + 1).min(*above + 1);
            diagonal = std::mem::replace(above, best);
            left = best;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_meant_if_it_is_near() {
        let names = ["min", "mode", "clusterCIDR", "maxPerCore"];
        for (written, expected) in [
            ("clusterCidr", Some("clusterCIDR")),
            ("Mode", Some("mode")),
            ("mod", Some("mode")),
            ("maxPerCores", Some("maxPerCore")),
            ("mn", Some("min")),
            ("max", None),
            ("portRange", None),
        ] {
            assert_eq!(nearest(written, names.into_iter()), expected, "{written}");
        }
        assert_eq!(nearest("mode", std::iter::empty::<&str>()), None);
    }

    #[test]
    fn distances_are_the_textbook_s() {
        for (from, to, expected) in
            [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
        {
            assert_eq!(distance(from, to), expected, "{from} {to}");
        }
    }
}
