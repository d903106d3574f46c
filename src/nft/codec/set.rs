//! Definitions of sets and maps.

use super::uapi::{DATA_VERDICT, set};
use super::userdata;
use super::wire::{Attributes, Writer, find, find_be32, find_string};
use crate::model::Family;
use crate::nft::schema::{Data, Field, SetName, SetSpec, TABLE};
use crate::nft::skeleton;

/// Length of a verdict as the kernel reports it, that of a `struct nft_verdict`.
const VERDICT_LEN: u32 = 16;

/// What the kernel knows of a set's definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Definition {
    flags: u32,
    key_type: u32,
    key_len: u32,
    /// Type and length.
    data: Option<(u32, u32)>,
    /// Lengths of the fields of an interval concatenation.
    concat: Vec<u32>,
}

/// Writes the contents of `NEWSET`. `id` tells the sets of one batch apart.
pub(super) fn write(
    writer: &mut Writer,
    family: Family,
    name: SetName,
    size: Option<u32>,
    id: u32,
) {
    let spec = skeleton::spec(name);
    let definition = Definition::of(family, &spec);
    writer.string(set::TABLE, TABLE);
    writer.string(set::NAME, name.name());
    writer.be32(set::FLAGS, definition.flags);
    writer.be32(set::KEY_TYPE, definition.key_type);
    writer.be32(set::KEY_LEN, definition.key_len);
    if let Some((kind, length)) = definition.data {
        writer.be32(set::DATA_TYPE, kind);
        writer.be32(set::DATA_LEN, length);
    }
    writer.be32(set::ID, id);
    if size.is_some() || !definition.concat.is_empty() {
        writer.nest(set::DESC, |writer| write_description(writer, size, &definition.concat));
    }
    writer.bytes(set::USERDATA, &userdata::of_set(family, &spec));
}

fn write_description(writer: &mut Writer, size: Option<u32>, concat: &[u32]) {
    if let Some(size) = size {
        writer.be32(set::DESC_SIZE, size);
    }
    if !concat.is_empty() {
        writer.nest(set::DESC_CONCAT, |writer| {
            for length in concat {
                writer.nest(1, |writer| writer.be32(set::FIELD_LEN, *length));
            }
        });
    }
}

/// Reads a `NEWSET` of a dump. `Err`: the name of a set that is not ours, or not as we define it.
pub(super) fn read(family: Family, payload: &[u8]) -> Result<(SetName, Option<u32>), String> {
    let shown = find_string(payload, set::NAME).unwrap_or("without a name");
    let Some(name) = SetName::parse(shown) else { return Err(shown.to_owned()) };
    let desc = find(payload, set::DESC).unwrap_or_default();
    if Definition::read(payload, desc) == Some(Definition::of(family, &skeleton::spec(name))) {
        Ok((name, find_be32(desc, set::DESC_SIZE)))
    } else {
        Err(shown.to_owned())
    }
}

/// How many elements it has, in a `NEWSET` of a dump; kernels before 6.16 do not tell.
pub(super) fn read_count(payload: &[u8]) -> Option<u32> {
    find_be32(payload, set::COUNT)
}

impl Definition {
    fn of(family: Family, spec: &SetSpec) -> Definition {
        let concat = spec.interval && spec.key.len() > 1;
        let flags = [
            (set::F_INTERVAL, spec.interval),
            (set::F_CONCAT, concat),
            (set::F_MAP, spec.data != Data::None),
            (set::F_TIMEOUT | set::F_EVAL, spec.dynamic),
        ];
        Definition {
            flags: flags.into_iter().filter(|(_, on)| *on).map(|(flag, _)| flag).sum(),
            key_type: kind(family, spec.key),
            key_len: padded_length(family, spec.key),
            data: match spec.data {
                Data::None => None,
                Data::Verdict => Some((DATA_VERDICT, VERDICT_LEN)),
                Data::Fields(fields) => Some((kind(family, fields), padded_length(family, fields))),
            },
            concat: if concat {
                spec.key.iter().map(|field| length(family, *field)).collect()
            } else {
                Vec::new()
            },
        }
    }

    fn read(payload: &[u8], desc: &[u8]) -> Option<Definition> {
        let number = |kind| find_be32(payload, kind);
        let flags = number(set::FLAGS).unwrap_or(0);
        let concat = find(desc, set::DESC_CONCAT).unwrap_or_default();
        Some(Definition {
            flags,
            key_type: number(set::KEY_TYPE)?,
            key_len: number(set::KEY_LEN)?,
            data: match flags & set::F_MAP {
                0 => None,
                _ => Some((number(set::DATA_TYPE)?, number(set::DATA_LEN)?)),
            },
            concat: Attributes(concat)
                .map(|(_, field)| find_be32(field, set::FIELD_LEN))
                .collect::<Option<_>>()?,
        })
    }
}

/// nft's number for a type; that of a concatenation is made of those of its fields, six bits each.
fn kind(family: Family, fields: &[Field]) -> u32 {
    fields.iter().fold(0, |kinds, field| kinds << 6 | field_kind(family, *field))
}

/// nft's `enum datatypes`
fn field_kind(family: Family, field: Field) -> u32 {
    match (field, family) {
        (Field::Saddr | Field::Daddr, Family::V4) => 7,
        (Field::Saddr | Field::Daddr, Family::V6) => 8,
        (Field::L4Proto, _) => 12,
        (Field::Dport, _) => 13,
        (Field::Random(_), _) => 4,
        (Field::Priority | Field::PriorityMasked(_), _) => 23,
    }
}

fn length(family: Family, field: Field) -> u32 {
    match (field, family) {
        (Field::Saddr | Field::Daddr, Family::V4) => 4,
        (Field::Saddr | Field::Daddr, Family::V6) => 16,
        (Field::L4Proto, _) => 1,
        (Field::Dport, _) => 2,
        (Field::Random(_) | Field::Priority | Field::PriorityMasked(_), _) => 4,
    }
}

/// Length of a key: in a concatenation every field takes whole words.
fn padded_length(family: Family, fields: &[Field]) -> u32 {
    match fields {
        [field] => length(family, *field),
        _ => fields.iter().map(|field| length(family, *field).next_multiple_of(4)).sum(),
    }
}
