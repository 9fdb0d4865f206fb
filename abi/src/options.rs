//! Types for the options of plugins, so that every plugin reads the same notation.
use crate::error;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error, Visitor},
};
use std::{fmt, str::FromStr};

/// A size in bytes, written as a number or as a string with one of the binary units K, M, G, T: `4096`, `"512M"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    /// A size of `bytes`.
    pub const fn from_bytes(bytes: u64) -> Self {
        Size(bytes)
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// Why a text is no [`Size`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeError(String);

impl fmt::Display for SizeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "`{}` is no size: write a number of bytes, or a number with K, M, G or T such as \"512M\"",
            self.0
        )
    }
}

impl std::error::Error for SizeError {}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K') => (&text[..text.len() - 1], 10),
            Some(b'M') => (&text[..text.len() - 1], 20),
            Some(b'G') => (&text[..text.len() - 1], 30),
            Some(b'T') => (&text[..text.len() - 1], 40),
            _ => (text, 0),
        };
        let bytes = if digits.bytes().all(|digit| digit.is_ascii_digit()) { digits.parse::<u64>().ok() } else { None };
        bytes.and_then(|count| count.checked_mul(1 << shift)).map(Size).ok_or_else(|| SizeError(text.to_owned()))
    }
}

/// The largest fitting unit, so that what is printed can be written into a configuration: `512M`, `1000`.
impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')] {
            if self.0 != 0 && self.0 & ((1 << shift) - 1) == 0 {
                return write!(formatter, "{}{unit}", self.0 >> shift);
            }
        }
        write!(formatter, "{}", self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a size such as 4096 or \"512M\"")
            }
            fn visit_u64<E: Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
            fn visit_i64<E: Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::custom(SizeError(bytes.to_string())))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

/// A logical block size in bytes: a power of two from 512 to 65536, written as a [`Size`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize(u32);

impl BlockSize {
    /// The size in bytes.
    pub const fn bytes(self) -> u32 {
        self.0
    }
}

/// 512 bytes.
impl Default for BlockSize {
    fn default() -> Self {
        BlockSize(512)
    }
}

impl<'de> Deserialize<'de> for BlockSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Size::deserialize(deserializer)?.bytes();
        if bytes.is_power_of_two() && (512..=65536).contains(&bytes) {
            Ok(BlockSize(bytes as u32))
        } else {
            Err(D::Error::custom(format!("a block size of {bytes}: write a power of two from 512 to 65536")))
        }
    }
}

/// Reads the options of an instance, a JSON object.
pub(crate) fn parse<O: DeserializeOwned>(json: &str) -> Result<O, error::Error> {
    let mut json = serde_json::Deserializer::from_str(json);
    serde_path_to_error::deserialize(&mut json).map_err(|error| error::Error::new(explain(&error)))
}

/// serde's message, with the key and without the place in the JSON text, which the user never wrote.
fn explain(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let (path, text) = (error.path().to_string(), error.inner().to_string());
    let reason = text.split(" at line ").next().unwrap_or(&text);
    // The path of an unknown or missing key is that of the whole.
    if path == "." { format!("options: {reason}") } else { format!("options.{path}: {reason}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(json: &str) -> Result<u64, String> {
        serde_json::from_str::<Size>(json).map(Size::bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn sizes_are_numbers_or_strings_with_a_unit() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("\"4096\""), Ok(4096));
        assert_eq!(size("\"4K\""), Ok(4096));
        assert_eq!(size("\"512M\""), Ok(512 << 20));
        assert_eq!(size("\"3G\""), Ok(3 << 30));
        assert_eq!(size("\"2T\""), Ok(2 << 40));
    }

    #[test]
    fn what_is_no_size_is_named_in_the_message() {
        for (json, named) in [
            ("\"\"", "``"),
            ("\"M\"", "`M`"),
            ("\"5Q\"", "`5Q`"),
            ("\"5m\"", "`5m`"),
            ("\"+5\"", "`+5`"),
            ("\"1.5G\"", "`1.5G`"),
            ("\"99999999T\"", "`99999999T`"),
            ("\"5µ\"", "`5µ`"),
            ("-1", "`-1`"),
            ("1.5", "1.5"),
            ("true", "true"),
        ] {
            let message = size(json).expect_err(json);
            assert!(message.contains(named) && message.contains("\"512M\""), "{json}: {message}");
        }
    }

    #[test]
    fn a_printed_size_reads_back() {
        for bytes in [0, 1, 1000, 1 << 10, 1536 << 20, 7 << 40] {
            assert_eq!(Size::from_bytes(bytes).to_string().parse(), Ok(Size::from_bytes(bytes)));
        }
    }

    #[test]
    fn block_sizes_are_powers_of_two() {
        assert_eq!(serde_json::from_str::<BlockSize>("\"4K\"").expect("JSON").bytes(), 4096);
        for json in ["0", "256", "1000", "131072", "4294967808"] {
            assert!(
                serde_json::from_str::<BlockSize>(json).expect_err("it fails").to_string().contains("power of two"),
                "{json}"
            );
        }
    }
}
