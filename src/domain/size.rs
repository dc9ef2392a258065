//! Sizes in bytes: the one rounding rule, and how people write them.

/// 2^10 bytes.
pub const KIB: u64 = 1 << 10;
/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;
/// 2^30 bytes.
pub const GIB: u64 = 1 << 30;
/// Every volume of every medium is a multiple of this, so that volumes move between pools: LVM's default extent.
pub const GRAIN: u64 = 4 * MIB;
/// What a volume gets whose size nobody asked for.
pub const DEFAULT: u64 = GIB;

/// The size that a caller asked for: at least `required`, at most `limit` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Range {
    /// At least this; 0 says nothing.
    pub required: u64,
    /// At most this, a hard bound; `None` says nothing.
    pub limit: Option<u64>,
}

/// No size within the range is possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no size between {required} and {} bytes is possible: {why}", limit.map_or("any".to_owned(), |limit| limit.to_string()))]
pub struct Impossible {
    required: u64,
    limit: Option<u64>,
    why: String,
}

/// What sizes a store can make, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Possible {
    /// The smallest volume.
    pub smallest: u64,
    /// The largest volume.
    pub largest: u64,
    /// Sizes are multiples of this where a limit forbids [`GRAIN`].
    pub grain: u64,
}

impl Range {
    /// Whether a volume of this size is what was asked for.
    pub fn admits(&self, size: u64) -> bool {
        size >= self.required && self.limit.is_none_or(|limit| size <= limit)
    }

    /// The size that a volume of this range gets: rounded up to [`GRAIN`], or to the store's own grain where the limit
    /// leaves no room for that.
    pub fn choose(&self, possible: &Possible) -> Result<u64, Impossible> {
        let refuse = |why: String| Impossible { required: self.required, limit: self.limit, why };
        let wanted = match (self.required, self.limit) {
            (0, Some(limit)) => DEFAULT.min(limit),
            (0, None) => DEFAULT,
            (required, _) => required,
        };
        let at_least = wanted.max(possible.smallest);
        let mut candidates = [GRAIN, possible.grain].into_iter().flat_map(|grain| {
            // rounding down is right only where the caller gave no lower bound
            let down = (self.required == 0).then_some(at_least - at_least % grain);
            at_least.checked_next_multiple_of(grain).into_iter().chain(down)
        });
        let size = candidates.find(|size| self.admits(*size) && *size >= possible.smallest);
        let size = size.ok_or_else(|| {
            refuse(format!(
                "the smallest volume here is {} bytes, and sizes are multiples of {}",
                possible.smallest, possible.grain
            ))
        })?;
        if size > possible.largest {
            return Err(refuse(format!("the largest volume here is {} bytes", possible.largest)));
        }
        Ok(size)
    }
}

/// The text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no size: write a whole number with an optional suffix Ki, Mi, Gi, Ti, Pi or k, M, G, T, P")]
pub struct NotASize(String);

/// Reads a size as Kubernetes writes quantities, in whole numbers: `200Gi`, `10G`, `4096`.
pub fn parse(text: &str) -> Result<u64, NotASize> {
    let refused = || NotASize(text.to_owned());
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(split);
    let unit = match suffix {
        "" => 1,
        "Ki" => KIB,
        "Mi" => MIB,
        "Gi" => GIB,
        "Ti" => GIB << 10,
        "Pi" => GIB << 20,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        _ => return Err(refused()),
    };
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(refused)
}

/// A size for people: `1.5Gi`, exact where it is a whole number of a unit.
pub fn show(bytes: u64) -> String {
    let units = [("Pi", GIB << 20), ("Ti", GIB << 10), ("Gi", GIB), ("Mi", MIB), ("Ki", KIB)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        None => bytes.to_string(),
        Some((name, unit)) if bytes.is_multiple_of(unit) => format!("{}{name}", bytes / unit),
        Some((name, unit)) => format!("{}.{}{name}", bytes / unit, (bytes % unit) * 10 / unit),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const POSSIBLE: Possible = Possible { smallest: 4 * MIB, largest: 100 * GIB, grain: 512 };

    #[test]
    fn sizes_are_rounded_up_where_the_limit_allows() {
        for (required, limit, size) in [
            (0, None, Some(GIB)),
            (0, Some(8 * MIB), Some(8 * MIB)),
            (0, Some(5 * MIB), Some(4 * MIB)),
            (1, None, Some(4 * MIB)),
            (1, Some(1), None),
            (10 * MIB, None, Some(12 * MIB)),
            (10 * MIB, Some(10 * MIB), Some(10 * MIB)),
            (10 * MIB + 1, Some(10 * MIB + 1), None),
            (10 * MIB + 1, Some(10 * MIB + 600), Some(10 * MIB + 512)),
            (100 * GIB, None, Some(100 * GIB)),
            (100 * GIB + 1, None, None),
            (u64::MAX, None, None),
        ] {
            assert_eq!(Range { required, limit }.choose(&POSSIBLE).ok(), size, "{required}..{limit:?}");
        }
    }

    #[test]
    fn sizes_in_text() {
        for (text, bytes) in
            [("200Gi", Some(200 * GIB)), ("10G", Some(10_000_000_000)), ("0", Some(0)), ("4096", Some(4096))]
        {
            assert_eq!(parse(text).ok(), bytes);
        }
        for refused in ["", "Gi", "1.5Gi", "-1", "1 Gi", "1gi", "99999999999Pi"] {
            assert!(parse(refused).is_err(), "{refused}");
        }
        for (bytes, text) in [(0, "0"), (1536 * MIB, "1.5Gi"), (GIB, "1Gi"), (4 * MIB, "4Mi"), (1023, "1023")] {
            assert_eq!(show(bytes), text);
        }
    }
}
