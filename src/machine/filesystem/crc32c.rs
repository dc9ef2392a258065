//! CRC-32C (Castagnoli), with which ext4, XFS and btrfs seal their superblocks.

/// The polynomial 0x1EDC6F41, its bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// What each value of a byte adds.
const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut value = 0;
    let mut entry = 0;
    while entry < table.len() {
        let mut crc: u32 = value;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[entry] = crc;
        entry += 1;
        value += 1;
    }
    table
}

/// The CRC register after these bytes, without the inversion at the end: the form that ext4 stores. It starts with all
/// bits set; the other two store the inverted register.
pub fn register<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let step = |crc: u32, byte: &u8| crc >> 8 ^ TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)];
    parts.into_iter().flatten().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_the_standard() {
        assert_eq!(!register([&b"123456789"[..]]), 0xe306_9283);
        assert_eq!(!register([&b"1234"[..], b"", b"56789"]), 0xe306_9283);
        assert_eq!(!register([&[0; 32][..]]), 0x8a91_36aa); // RFC 3720, B.4
        assert_eq!(!register([]), 0);
    }
}
