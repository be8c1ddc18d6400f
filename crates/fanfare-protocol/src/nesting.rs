/// How many arrays and objects lie in one another at the deepest place of a JSON text: 0 for a number, 2 for `[[1], 2]`.
///
/// It counts brackets outside strings and stops nowhere, so it takes a text of any depth, and says nothing of use about
/// what is not JSON.
///
/// ```
/// assert_eq!(fanfare_protocol::nesting(br#"{"a": [1, "]"], "b": {}}"#), 2);
/// ```
#[must_use]
pub fn nesting(json: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => skip_string(&mut bytes),
            _ => {}
        }
    }
    deepest
}

fn skip_string(bytes: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_count_outside_of_strings_only() {
        for (json, expected) in [
            ("7", 0),
            ("[]", 1),
            ("[[1],{\"a\":[2]},3]", 3),
            (r#""[[[""#, 0),
            (r#"["\"[[", "\\"]"#, 1),
            ("{\"[\":\"}\"}", 1),
            ("]]]]", 0),
            ("\"\\", 0),
        ] {
            assert_eq!(nesting(json.as_bytes()), expected, "{json}");
        }
        assert_eq!(nesting("[".repeat(100_000).as_bytes()), 100_000);
    }
}
