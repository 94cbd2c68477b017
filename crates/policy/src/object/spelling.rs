//! How Kubernetes lets things be spelled: names, label keys and values, port
//! names. Each function returns what is wrong, in words that follow the
//! quoted text.

/// RFC 1123 subdomain: the names of most objects.
pub fn subdomain(text: &str) -> Result<(), &'static str> {
    const LONGEST: usize = 253;
    let parts_fit = text.split('.').all(|part| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !part.starts_with('-')
            && !part.ends_with('-')
    });
    match parts_fit && text.len() <= LONGEST {
        true => Ok(()),
        false => Err("is no name: lower-case letters, digits, '-' and '.', at most 253"),
    }
}

/// `name` or `prefix/name`, the prefix a subdomain.
pub fn label_key(text: &str) -> Result<(), &'static str> {
    let name = match text.split_once('/') {
        Some((prefix, name)) => {
            subdomain(prefix).map_err(|_| "is no label key: its prefix is no domain name")?;
            name
        }
        None => text,
    };
    match !name.is_empty() && label_value(name).is_ok() {
        true => Ok(()),
        false => Err("is no label key: letters, digits, '-', '_' and '.', at most 63"),
    }
}

pub fn label_value(text: &str) -> Result<(), &'static str> {
    const LONGEST: usize = 63;
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let ends = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let fits = bytes.len() <= LONGEST
        && bytes.iter().all(|b| inner(*b))
        && ends(bytes.first())
        && ends(bytes.last());
    match fits {
        true => Ok(()),
        false => Err("is no label value: letters, digits, '-', '_' and '.', at most 63"),
    }
}

/// RFC 6335 service name.
pub fn port_name(text: &str) -> Result<(), &'static str> {
    const LONGEST: usize = 15;
    let fits = (1..=LONGEST).contains(&text.len())
        && text
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && text.bytes().any(|b| b.is_ascii_lowercase())
        && !text.contains("--")
        && !text.starts_with('-')
        && !text.ends_with('-');
    match fits {
        true => Ok(()),
        false => Err("is no port name: lower-case letters, digits and '-', at most 15"),
    }
}
