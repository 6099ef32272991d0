//! Steps of rules as libnftnl's expressions.

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;

use nftnl::expr::Expression;
use nftnl::nftnl_sys::{self as sys, libc};

use super::{allocated, attribute, c_string, text};
use crate::layout::{Base, Connection, Expr, HASH_SEED, Meta, number};
use crate::value::Family;

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` of the kernel, which libc lacks.
const RANDOM_FULLY: u32 = 1 << 4;

/// An expression under construction. It is given away when it is done, and never freed here.
struct Builder(NonNull<sys::nftnl_expr>);

impl Builder {
    fn new(kind: &'static CStr) -> Self {
        // SAFETY: the name is a C string; libnftnl knows all kinds that are named below.
        Self(allocated(unsafe { sys::nftnl_expr_alloc(text(kind)) }))
    }

    fn number(self, key: u32, value: u32) -> Self {
        // SAFETY: the expression is alive.
        unsafe { sys::nftnl_expr_set_u32(self.0.as_ptr(), attribute(key), value) };
        self
    }

    fn byte(self, key: u32, value: u8) -> Self {
        // SAFETY: the expression is alive.
        unsafe { sys::nftnl_expr_set_u8(self.0.as_ptr(), attribute(key), value) };
        self
    }

    fn bytes(self, key: u32, value: &[u8]) -> Self {
        let length = u32::try_from(value.len()).expect("data of an expression is short");
        let data = value.as_ptr().cast::<c_void>();
        // SAFETY: `value` has this length, and is copied.
        unsafe { sys::nftnl_expr_set(self.0.as_ptr(), attribute(key), data, length) };
        self
    }

    fn string(self, key: u32, value: &str) -> Self {
        let value = c_string(value);
        // SAFETY: the string ends with zero, and is copied.
        let failed =
            unsafe { sys::nftnl_expr_set_str(self.0.as_ptr(), attribute(key), value.as_ptr()) };
        assert!(failed >= 0, "libnftnl copies what it is given");
        self
    }
}

impl Expression for Expr {
    fn to_expr(&self, _: &nftnl::Rule<'_>) -> NonNull<sys::nftnl_expr> {
        let builder = match self {
            Self::Meta(..) | Self::Payload { .. } | Self::Connection(..) => load(self),
            Self::Equal(from, data) => Builder::new(c"cmp")
                .number(sys::NFTNL_EXPR_CMP_SREG, *from)
                .number(sys::NFTNL_EXPR_CMP_OP, unsigned(libc::NFT_CMP_EQ))
                .bytes(sys::NFTNL_EXPR_CMP_DATA, data),
            Self::Mask(register, mask) => Builder::new(c"bitwise")
                .number(sys::NFTNL_EXPR_BITWISE_SREG, *register)
                .number(sys::NFTNL_EXPR_BITWISE_DREG, *register)
                .number(sys::NFTNL_EXPR_BITWISE_LEN, 4)
                .bytes(sys::NFTNL_EXPR_BITWISE_MASK, &mask.to_ne_bytes())
                .bytes(sys::NFTNL_EXPR_BITWISE_XOR, &[0; 4]),
            Self::Random(..) | Self::Hash { .. } => pick(self),
            Self::Lookup(set, from, to) => {
                let lookup = Builder::new(c"lookup")
                    .string(sys::NFTNL_EXPR_LOOKUP_SET, &set.to_string())
                    .number(sys::NFTNL_EXPR_LOOKUP_SREG, *from);
                match to {
                    Some(to) => lookup.number(sys::NFTNL_EXPR_LOOKUP_DREG, *to),
                    None => lookup,
                }
            }
            Self::Dnat(family, address, port) => Builder::new(c"nat")
                .number(sys::NFTNL_EXPR_NAT_TYPE, unsigned(libc::NFT_NAT_DNAT))
                .number(sys::NFTNL_EXPR_NAT_FAMILY, u32::from(number(*family)))
                .number(sys::NFTNL_EXPR_NAT_REG_ADDR_MIN, *address)
                .number(sys::NFTNL_EXPR_NAT_REG_PROTO_MIN, *port),
            // Ports are drawn at random, since two CPUs that search upwards find the same one.
            Self::Masquerade => {
                Builder::new(c"masq").number(sys::NFTNL_EXPR_MASQ_FLAGS, RANDOM_FULLY)
            }
            Self::RejectReset => Builder::new(c"reject")
                .number(sys::NFTNL_EXPR_REJECT_TYPE, unsigned(libc::NFT_REJECT_TCP_RST))
                .byte(sys::NFTNL_EXPR_REJECT_CODE, 0),
            Self::RejectPort => Builder::new(c"reject")
                .number(sys::NFTNL_EXPR_REJECT_TYPE, unsigned(libc::NFT_REJECT_ICMPX_UNREACH))
                .byte(
                    sys::NFTNL_EXPR_REJECT_CODE,
                    u8::try_from(libc::NFT_REJECT_ICMPX_PORT_UNREACH).expect("a code is a byte"),
                ),
            Self::Jump(chain) => verdict(libc::NFT_JUMP, Some(chain)),
            Self::Goto(chain) => verdict(libc::NFT_GOTO, Some(chain)),
            Self::Return => verdict(libc::NFT_RETURN, None),
        };
        builder.0
    }
}

fn load(expression: &Expr) -> Builder {
    match expression {
        Expr::Meta(key, to) => {
            let key = match key {
                Meta::Family => libc::NFT_META_NFPROTO,
                Meta::Protocol => libc::NFT_META_L4PROTO,
            };
            Builder::new(c"meta")
                .number(sys::NFTNL_EXPR_META_KEY, unsigned(key))
                .number(sys::NFTNL_EXPR_META_DREG, *to)
        }
        Expr::Payload { base, offset, length, to } => {
            let base = match base {
                Base::Network => libc::NFT_PAYLOAD_NETWORK_HEADER,
                Base::Transport => libc::NFT_PAYLOAD_TRANSPORT_HEADER,
            };
            Builder::new(c"payload")
                .number(sys::NFTNL_EXPR_PAYLOAD_BASE, unsigned(base))
                .number(sys::NFTNL_EXPR_PAYLOAD_OFFSET, *offset)
                .number(sys::NFTNL_EXPR_PAYLOAD_LEN, *length)
                .number(sys::NFTNL_EXPR_PAYLOAD_DREG, *to)
        }
        Expr::Connection(what, to) => {
            let (key, original) = match what {
                Connection::Status => (libc::NFT_CT_STATUS, false),
                Connection::OriginalAddress(Family::V4) => (libc::NFT_CT_DST_IP, true),
                Connection::OriginalAddress(Family::V6) => (libc::NFT_CT_DST_IP6, true),
                Connection::OriginalPort => (libc::NFT_CT_PROTO_DST, true),
            };
            let load = Builder::new(c"ct")
                .number(sys::NFTNL_EXPR_CT_KEY, unsigned(key))
                .number(sys::NFTNL_EXPR_CT_DREG, *to);
            // Direction 0 is the original one.
            if original { load.byte(sys::NFTNL_EXPR_CT_DIR, 0) } else { load }
        }
        other => unreachable!("{other:?} loads nothing"),
    }
}

fn pick(expression: &Expr) -> Builder {
    match expression {
        Expr::Random(modulus, to) => Builder::new(c"numgen")
            .number(sys::NFTNL_EXPR_NG_DREG, *to)
            .number(sys::NFTNL_EXPR_NG_MODULUS, *modulus)
            .number(sys::NFTNL_EXPR_NG_TYPE, unsigned(libc::NFT_NG_RANDOM)),
        Expr::Hash { from, length, modulus, to } => Builder::new(c"hash")
            .number(sys::NFTNL_EXPR_HASH_SREG, *from)
            .number(sys::NFTNL_EXPR_HASH_DREG, *to)
            .number(sys::NFTNL_EXPR_HASH_LEN, *length)
            .number(sys::NFTNL_EXPR_HASH_MODULUS, *modulus)
            .number(sys::NFTNL_EXPR_HASH_SEED, HASH_SEED)
            // 0 is the kernel's `NFT_HASH_JENKINS`.
            .number(sys::NFTNL_EXPR_HASH_TYPE, 0),
        other => unreachable!("{other:?} picks no slot"),
    }
}

fn verdict(verdict: i32, chain: Option<&str>) -> Builder {
    let builder = Builder::new(c"immediate")
        .number(sys::NFTNL_EXPR_IMM_DREG, unsigned(libc::NFT_REG_VERDICT))
        // Verdicts are negative numbers in an unsigned field.
        .number(sys::NFTNL_EXPR_IMM_VERDICT, verdict.cast_unsigned());
    match chain {
        Some(chain) => builder.string(sys::NFTNL_EXPR_IMM_CHAIN, chain),
        None => builder,
    }
}

/// A constant of the kernel, which libc gives a sign.
fn unsigned(constant: i32) -> u32 {
    u32::try_from(constant).expect("constants of the kernel are not negative")
}
