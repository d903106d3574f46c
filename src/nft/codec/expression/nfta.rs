//! Attributes of expressions, named as in linux/netfilter/nf_tables.h.

/// `NFTA_PAYLOAD_*`
pub(super) mod payload {
    pub(in crate::nft::codec::expression) const DREG: u16 = 1;
    pub(in crate::nft::codec::expression) const BASE: u16 = 2;
    pub(in crate::nft::codec::expression) const OFFSET: u16 = 3;
    pub(in crate::nft::codec::expression) const LEN: u16 = 4;
}

/// `NFTA_META_*` and `NFTA_CT_*`, which agree in what we use.
pub(super) mod keyed {
    pub(in crate::nft::codec::expression) const DREG: u16 = 1;
    pub(in crate::nft::codec::expression) const KEY: u16 = 2;
    pub(in crate::nft::codec::expression) const META_SREG: u16 = 3;
}

/// `NFTA_FIB_*`
pub(super) mod fib {
    pub(in crate::nft::codec::expression) const DREG: u16 = 1;
    pub(in crate::nft::codec::expression) const RESULT: u16 = 2;
    pub(in crate::nft::codec::expression) const FLAGS: u16 = 3;
}

/// `NFTA_NG_*`
pub(super) mod numgen {
    pub(in crate::nft::codec::expression) const DREG: u16 = 1;
    pub(in crate::nft::codec::expression) const MODULUS: u16 = 2;
    pub(in crate::nft::codec::expression) const TYPE: u16 = 3;
    pub(in crate::nft::codec::expression) const OFFSET: u16 = 4;
    pub(in crate::nft::codec::expression) const RANDOM: u32 = 1;
}

/// `NFTA_CMP_*`
pub(super) mod cmp {
    pub(in crate::nft::codec::expression) const SREG: u16 = 1;
    pub(in crate::nft::codec::expression) const OP: u16 = 2;
    pub(in crate::nft::codec::expression) const DATA: u16 = 3;
}

/// `NFTA_BITWISE_*`
pub(super) mod bitwise {
    pub(in crate::nft::codec::expression) const SREG: u16 = 1;
    pub(in crate::nft::codec::expression) const DREG: u16 = 2;
    pub(in crate::nft::codec::expression) const LEN: u16 = 3;
    pub(in crate::nft::codec::expression) const MASK: u16 = 4;
    pub(in crate::nft::codec::expression) const XOR: u16 = 5;
    pub(in crate::nft::codec::expression) const OP: u16 = 6;
    pub(in crate::nft::codec::expression) const MASK_XOR: u32 = 0;
}

/// `NFTA_BYTEORDER_*`
pub(super) mod byteorder {
    pub(in crate::nft::codec::expression) const SREG: u16 = 1;
    pub(in crate::nft::codec::expression) const DREG: u16 = 2;
    pub(in crate::nft::codec::expression) const OP: u16 = 3;
    pub(in crate::nft::codec::expression) const LEN: u16 = 4;
    pub(in crate::nft::codec::expression) const SIZE: u16 = 5;
    pub(in crate::nft::codec::expression) const HTON: u32 = 1;
}

/// `NFTA_LOOKUP_*`
pub(super) mod lookup {
    pub(in crate::nft::codec::expression) const SET: u16 = 1;
    pub(in crate::nft::codec::expression) const SREG: u16 = 2;
    pub(in crate::nft::codec::expression) const DREG: u16 = 3;
    pub(in crate::nft::codec::expression) const FLAGS: u16 = 5;
    pub(in crate::nft::codec::expression) const F_INV: u32 = 1;
}

/// `NFTA_DYNSET_*`
pub(super) mod dynset {
    pub(in crate::nft::codec::expression) const SET_NAME: u16 = 1;
    pub(in crate::nft::codec::expression) const OP: u16 = 3;
    pub(in crate::nft::codec::expression) const SREG_KEY: u16 = 4;
    pub(in crate::nft::codec::expression) const SREG_DATA: u16 = 5;
    pub(in crate::nft::codec::expression) const TIMEOUT: u16 = 6;
    pub(in crate::nft::codec::expression) const PAD: u16 = 8;
    pub(in crate::nft::codec::expression) const FLAGS: u16 = 9;
}

/// `NFTA_IMMEDIATE_*`
pub(super) mod immediate {
    pub(in crate::nft::codec::expression) const DREG: u16 = 1;
    pub(in crate::nft::codec::expression) const DATA: u16 = 2;
}

/// `NFTA_NAT_*`
pub(super) mod nat {
    pub(in crate::nft::codec::expression) const TYPE: u16 = 1;
    pub(in crate::nft::codec::expression) const FAMILY: u16 = 2;
    pub(in crate::nft::codec::expression) const REG_ADDR_MIN: u16 = 3;
    pub(in crate::nft::codec::expression) const REG_ADDR_MAX: u16 = 4;
    pub(in crate::nft::codec::expression) const REG_PROTO_MIN: u16 = 5;
    pub(in crate::nft::codec::expression) const REG_PROTO_MAX: u16 = 6;
    pub(in crate::nft::codec::expression) const FLAGS: u16 = 7;
    pub(in crate::nft::codec::expression) const DNAT: u32 = 1;
    /// `NF_NAT_RANGE_MAP_IPS` and `NF_NAT_RANGE_PROTO_SPECIFIED`, which the kernel derives from the registers.
    pub(in crate::nft::codec::expression) const DERIVED_FLAGS: u32 = 3;
}

/// `NFTA_MASQ_FLAGS`
pub(super) const MASQ_FLAGS: u16 = 1;

/// `NFTA_REJECT_*`
pub(super) mod reject {
    pub(in crate::nft::codec::expression) const TYPE: u16 = 1;
    pub(in crate::nft::codec::expression) const ICMP_CODE: u16 = 2;
}
