//! Which addresses may be asked: a list of URLs from the internet must not reach into the network that we run in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The rule for addresses; applied by the resolver, and to addresses that are written out in a URL.
#[derive(Clone, Copy, Debug)]
pub struct AddressRule {
    /// Whether loopback and private addresses may be asked.
    pub allow_private: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Public,
    Private,
    Never,
}

impl AddressRule {
    /// Whether an address may be asked.
    #[must_use]
    pub fn allows(self, address: IpAddr) -> bool {
        match class(address) {
            Class::Public => true,
            Class::Private => self.allow_private,
            Class::Never => false,
        }
    }
}

fn class(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(address) => class_v4(address),
        IpAddr::V6(address) => class_v6(address),
    }
}

fn class_v4(address: Ipv4Addr) -> Class {
    match address.octets() {
        // Metadata services of clouds (169.254.169.254 is link-local, these two are not); then this network,
        // link-local, multicast, reserved and broadcast.
        [100, 100, 100, 200] | [192, 0, 0, 192] | [0 | 224..=255, ..] | [169, 254, ..] => Class::Never,
        // Loopback and private; carriers' address translation, protocol assignments, benchmarks, documentation.
        [10 | 127, ..]
        | [172, 16..=31, ..]
        | [192, 168, ..]
        | [100, 64..=127, ..]
        | [192, 0, 0 | 2, _]
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _] => Class::Private,
        _ => Class::Public,
    }
}

fn class_v6(address: Ipv6Addr) -> Class {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        class_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 1] => Class::Private,
        // IPv4 in other clothes: compatible (and ::), mapped, translated (NAT64), 6to4.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            embedded(high, low)
        }
        // Amazon's metadata service; link-local, site-local and multicast; Teredo, which hides an address in its bits.
        [0xfd00, 0xec2, ..] | [0xfe80..=0xffff, ..] | [0x2001, 0, ..] => Class::Never,
        [0xfc00..=0xfdff, ..] | [0x2001, 0xdb8, ..] | [0x64, 0xff9b, 1, ..] => Class::Private,
        _ => Class::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(allow_private: bool, addresses: &[&str]) -> Vec<bool> {
        addresses.iter().map(|text| AddressRule { allow_private }.allows(text.parse().unwrap())).collect()
    }

    #[test]
    fn public_addresses_are_allowed() {
        let public = ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "2002:808:808::1"];
        assert_eq!(allowed(false, &public), [true; 6]);
    }

    #[test]
    fn private_addresses_need_permission() {
        let private = [
            "127.0.0.1",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "::1",
            "fd12::1",
            "::ffff:127.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::",
        ];
        assert_eq!(allowed(false, &private), [false; 10]);
        assert_eq!(allowed(true, &private), [true; 10]);
    }

    #[test]
    fn link_local_and_metadata_addresses_are_never_allowed() {
        let never = [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "0.0.0.0",
            "::",
            "255.255.255.255",
            "224.0.0.1",
            "ff02::1",
            "64:ff9b::a9fe:a9fe",
        ];
        assert_eq!(allowed(true, &never), [false; 11]);
    }
}
