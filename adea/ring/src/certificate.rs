//! Until when a certificate holds, which no library that is at hand tells of one that it hasn't made.

use crate::calendar::days_to;

/// A part of a DER encoding: its tag, its content, and what follows it.
type Element<'a> = (u8, &'a [u8], &'a [u8]);

const SEQUENCE: u8 = 0x30;
/// The version's tag in a certificate (RFC 5280, 4.1): it may be left out.
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The first and the last second at which a certificate holds (RFC 5280, 4.1.2.5), in seconds since 1970; `None` if that
/// can't be read. Nothing else of it is looked at.
pub fn validity_s(der: &[u8]) -> Option<(i64, i64)> {
    let (certificate, _) = sequence(der)?;
    let (mut rest, _) = sequence(certificate)?;
    if rest.first() == Some(&VERSION) {
        rest = element(rest)?.2;
    }
    // The number, the signature's kind, who signed.
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (validity, _) = sequence(rest)?;
    let (tag, from, rest) = element(validity)?;
    let from_s = time_s(tag, from)?;
    let (tag, until, _) = element(rest)?;
    Some((from_s, time_s(tag, until)?))
}

fn sequence(der: &[u8]) -> Option<(&[u8], &[u8])> {
    element(der).filter(|(tag, ..)| *tag == SEQUENCE).map(|(_, content, rest)| (content, rest))
}

fn element(der: &[u8]) -> Option<Element<'_>> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match usize::from(first) {
        short @ 0..0x80 => (short, rest),
        long => {
            // Four bytes are more than any certificate has.
            let (bytes, rest) =
                rest.split_at_checked(long - 0x80).filter(|(bytes, _)| (1..=4).contains(&bytes.len()))?;
            (bytes.iter().fold(0usize, |sum, byte| (sum << 8) | usize::from(*byte)), rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`: certificates have no other forms.
fn time_s(tag: u8, text: &[u8]) -> Option<i64> {
    let digits = text.strip_suffix(b"Z")?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = digits.split_at_checked(2)?;
            let year = number(year)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = digits.split_at_checked(4)?;
            (number(year)?, rest)
        }
        _ => return None,
    };
    let parts: Option<Vec<i64>> = rest.chunks(2).map(number).collect();
    let [month, day, hour, minute, second] = parts?[..] else { return None };
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    Some(((days_to(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + i64::from(byte - b'0')))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn dates_are_seconds() {
        for (tag, text, seconds) in [
            (UTC_TIME, &b"700101000000Z"[..], 0),
            (UTC_TIME, b"491231235959Z", 2_524_607_999),
            (UTC_TIME, b"500101000000Z", -631_152_000),
            (GENERALIZED_TIME, b"20240229120000Z", 1_709_208_000),
            (GENERALIZED_TIME, b"21000301000000Z", 4_107_542_400),
        ] {
            assert_eq!(time_s(tag, text), Some(seconds), "{}", String::from_utf8_lossy(text));
        }
        for bad in [&b"7001010000Z"[..], b"700101000000", b"701301000000Z", b"70010100000xZ", b"Z", b"7001010000000Z"] {
            assert_eq!(time_s(UTC_TIME, bad), None);
        }
    }

    #[test]
    fn a_certificate_tells_until_when() {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2024, 2, 29);
        params.not_after = date_time_ymd(2051, 1, 1);
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        assert_eq!(validity_s(&der), Some((1_709_164_800, 2_556_144_000)));
        // Whatever is cut off or changed, nothing panics.
        for at in 0..der.len() {
            let _ = validity_s(&der[..at]);
            let mut changed = der.clone();
            changed[at] ^= 0x8f;
            let _ = validity_s(&changed);
        }
    }
}
