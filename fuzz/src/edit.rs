use arbitrary::{Result, Unstructured};

/// Most edits of one message.
const EDITS_MAX: usize = 4;

/// Valid bytes as a peer that is nearly healthy, or not healthy at all, would send them: whole, edited, or replaced.
pub fn edited(valid: Vec<u8>, input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    if input.ratio(1, 8)? {
        return input.arbitrary();
    }
    let mut bytes = valid;
    for _ in 0..input.int_in_range(0..=EDITS_MAX)? {
        let at = input.int_in_range(0..=bytes.len())?;
        match input.int_in_range(0..=7)? {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, input.arbitrary()?),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            _ if at < bytes.len() => bytes[at] = input.arbitrary()?,
            _ => bytes.push(input.arbitrary()?),
        }
    }
    Ok(bytes)
}
