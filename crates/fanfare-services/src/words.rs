//! Words as GNU `wc` counts them in a UTF-8 locale.

use unicode_general_category::{GeneralCategory, get_general_category};

/// Counts the words of a text that comes in pieces, of any length and cut anywhere.
#[derive(Debug, Default)]
pub(crate) struct WordCounter {
    words: u64,
    in_word: bool,
    /// The start of a character whose end is in the next piece: at most three bytes.
    cut: Vec<u8>,
}

impl WordCounter {
    /// Takes the next piece.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        let joined;
        let mut rest = if self.cut.is_empty() {
            piece
        } else {
            joined = [&self.cut, piece].concat();
            self.cut.clear();
            &joined
        };
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => return self.text(text),
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    self.text(std::str::from_utf8(valid).expect("valid up to here"));
                    match error.error_len() {
                        // Bytes that are no UTF-8 neither make nor divide a word.
                        Some(invalid) => rest = &after[invalid..],
                        None => return self.cut = after.to_vec(),
                    }
                }
            }
        }
    }

    /// The words of all pieces.
    pub(crate) fn finish(self) -> u64 {
        self.words + u64::from(self.in_word)
    }

    fn text(&mut self, text: &str) {
        for c in text.chars() {
            if is_space(c) {
                self.words += u64::from(self.in_word);
                self.in_word = false;
            } else if !self.in_word && is_printable(c) {
                self.in_word = true;
            }
        }
    }
}

/// White space of the C library, and the spaces that do not break a line, which `wc` adds to it. The line and paragraph
/// separators U+2028 and U+2029 are not among them: `wc` passes over what cannot be printed before it looks for white space.
const fn is_space(c: char) -> bool {
    matches!(
        c,
        '\t'..='\r' | ' ' | '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{2060}' | '\u{3000}'
    )
}

/// What the C library takes for printable: all that Unicode had assigned, but for controls and separators of lines. The
/// tables are those of Unicode 14, as in the C libraries with which the versions of `wc` came that count so.
fn is_printable(c: char) -> bool {
    use GeneralCategory::{Control, LineSeparator, ParagraphSeparator, Surrogate, Unassigned};
    let unprintable = [Control, LineSeparator, ParagraphSeparator, Surrogate, Unassigned];
    c.is_ascii_graphic() || !c.is_ascii() && !unprintable.contains(&get_general_category(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words_in_pieces(bytes: &[u8], size: usize) -> u64 {
        let mut counter = WordCounter::default();
        bytes.chunks(size).for_each(|piece| counter.push(piece));
        counter.finish()
    }

    #[test]
    fn words_do_not_depend_on_where_the_text_is_cut() {
        let text = "äöü — x\u{a0}y\u{2060}z\u{3000}\u{1f600}\u{2028}q".as_bytes();
        let broken = [text, b" \xff\xe2\x80 \xe2\x80a \xf0\x9f\x98", text, b"\xe2\x80"].concat();
        let whole = words_in_pieces(&broken, broken.len());
        assert_eq!(whole, 13);
        for size in 1..broken.len() {
            assert_eq!(words_in_pieces(&broken, size), whole, "in pieces of {size} bytes");
        }
    }

    #[test]
    fn what_cannot_be_printed_is_no_word() {
        assert_eq!(words_in_pieces(b"\x00 \x01 \xff \xc2\x85 a\x00b", 64), 1);
    }
}
