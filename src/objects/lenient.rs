//! Fields that survive values of a wrong type.
//!
//! Everything streams: a wrong or overlong value is read to its end and dropped, nothing is buffered.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::LIST_LIMIT;

/// Longest text, in bytes, that any field we read may hold; names end at 253, timestamps and CIDRs far earlier.
const TEXT_LIMIT: usize = 1024;

/// A field of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Field<T> {
    /// Missing or null.
    #[default]
    Absent,
    Given(T),
    /// Something of another type, or a text that is too long for any field.
    Wrong,
}

impl<T> Field<T> {
    pub fn given(&self) -> Option<&T> {
        match self {
            Field::Given(value) => Some(value),
            Field::Absent | Field::Wrong => None,
        }
    }

    pub fn is_wrong(&self) -> bool {
        matches!(self, Field::Wrong)
    }
}

impl Field<String> {
    /// The text; empty when absent or wrong.
    pub fn text(&self) -> &str {
        self.given().map_or("", String::as_str)
    }
}

impl<T> Field<Items<T>> {
    /// The elements; none when absent or wrong.
    pub fn items(&self) -> &[T] {
        self.given().map_or(&[], |it| it.kept.as_slice())
    }

    pub fn is_too_long(&self) -> bool {
        self.given().is_some_and(|it| it.truncated)
    }
}

/// The first [`LIST_LIMIT`] elements of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Items<T> {
    pub kept: Vec<T>,
    /// There were more.
    pub truncated: bool,
}

/// What a type accepts; everything it does not override is of a wrong type.
pub trait Shape<'de>: Sized {
    fn from_text(_: &str) -> Option<Self> {
        None
    }

    fn from_number(_: i64) -> Option<Self> {
        None
    }

    fn from_flag(_: bool) -> Option<Self> {
        None
    }

    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn from_map<A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

impl Shape<'_> for String {
    fn from_text(text: &str) -> Option<Self> {
        (text.len() <= TEXT_LIMIT).then(|| text.to_owned())
    }
}

impl Shape<'_> for i64 {
    fn from_number(number: i64) -> Option<Self> {
        Some(number)
    }
}

impl Shape<'_> for bool {
    fn from_flag(flag: bool) -> Option<Self> {
        Some(flag)
    }
}

impl<'de, T: Deserialize<'de>> Shape<'de> for Items<T> {
    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let mut kept = Vec::new();
        while kept.len() < LIST_LIMIT {
            match list.next_element()? {
                Some(element) => kept.push(element),
                None => return Ok(Some(Items { kept, truncated: false })),
            }
        }
        let mut truncated = false;
        while list.next_element::<IgnoredAny>()?.is_some() {
            truncated = true;
        }
        Ok(Some(Items { kept, truncated }))
    }
}

/// Makes derived structs usable in [`Field`].
macro_rules! object_shape {
    ($($name:ty),* $(,)?) => {$(
        impl<'de> $crate::objects::lenient::Shape<'de> for $name {
            fn from_map<A: serde::de::MapAccess<'de>>(map: A) -> Result<Option<Self>, A::Error> {
                serde::Deserialize::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Some)
            }
        }
    )*};
}
pub(super) use object_shape;

impl<'de, T: Shape<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor(PhantomData))
    }
}

struct FieldVisitor<T>(PhantomData<T>);

impl<'de, T: Shape<'de>> Visitor<'de> for FieldVisitor<T> {
    type Value = Field<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Field::Absent)
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(Field::Absent)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Self::Value, E> {
        Ok(judged(T::from_flag(flag)))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(judged(T::from_number(number)))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(judged(i64::try_from(number).ok().and_then(T::from_number)))
    }

    fn visit_i128<E>(self, _: i128) -> Result<Self::Value, E> {
        Ok(Field::Wrong)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Self::Value, E> {
        Ok(Field::Wrong)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Field::Wrong)
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(judged(T::from_text(text)))
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Self::Value, E> {
        Ok(Field::Wrong)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        T::from_list(list).map(judged)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::from_map(map).map(judged)
    }
}

fn judged<T>(value: Option<T>) -> Field<T> {
    value.map_or(Field::Wrong, Field::Given)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_the_right_type_is_given() {
        check(r#""a""#, Field::Given("a".to_owned()));
        check("80", Field::Given(80_i64));
        check("true", Field::Given(true));
    }

    #[test]
    fn null_is_absent() {
        check("null", Field::<String>::Absent);
    }

    #[test]
    fn anything_else_is_wrong_and_read_to_its_end() {
        for json in [
            "80",
            "true",
            r#"{"a":[1,{"b":2}]}"#,
            "[1,[2]]",
            "1.5",
            "123456789012345678901234567890",
        ] {
            check(json, Field::<String>::Wrong);
        }
        for json in [r#""80""#, "80.0", "18446744073709551615", "[]", "{}"] {
            check(json, Field::<i64>::Wrong);
        }
        check(r#""true""#, Field::<bool>::Wrong);
        check(r#"{"a":1}"#, Field::<Items<Field<i64>>>::Wrong);
    }

    #[test]
    fn a_text_longer_than_any_name_is_wrong() {
        check(&format!("\"{}\"", "a".repeat(TEXT_LIMIT)), Field::Given("a".repeat(TEXT_LIMIT)));
        check(&format!("\"{}\"", "a".repeat(TEXT_LIMIT + 1)), Field::<String>::Wrong);
    }

    #[test]
    fn an_endless_list_is_cut_and_says_so() {
        let list = |n: usize| format!("[{}]", vec!["1"; n].join(","));
        let read = |json: String| serde_json::from_str::<Field<Items<Field<i64>>>>(&json).unwrap();
        let full = read(list(LIST_LIMIT));
        assert_eq!((full.items().len(), full.is_too_long()), (LIST_LIMIT, false));
        let cut = read(list(LIST_LIMIT + 1));
        assert_eq!((cut.items().len(), cut.is_too_long()), (LIST_LIMIT, true));
    }

    #[track_caller]
    fn check<T>(json: &str, expected: Field<T>)
    where
        T: for<'de> Shape<'de> + fmt::Debug + PartialEq,
    {
        assert_eq!(serde_json::from_str::<Field<T>>(json).unwrap(), expected, "{json}");
        let value: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(
            serde_json::from_value::<Field<T>>(value).unwrap(),
            expected,
            "{json} as a value"
        );
    }
}
