//! Text that crosses the boundary: a borrowed string, and a buffer that the other side fills.
use abi_stable::StableAbi;
use std::fmt;

/// Borrowed UTF-8 text, not terminated. Valid during the call that passes it, unless said otherwise.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct Text {
    /// First byte. May be null when `length` is 0.
    pub data: *const u8,
    /// Length in bytes.
    pub length: usize,
}

// SAFETY: `Text` is a pointer to immutable bytes; whoever passes it answers for their lifetime.
unsafe impl Send for Text {}
// SAFETY: as above.
unsafe impl Sync for Text {}

impl Text {
    /// Borrows `text`.
    pub const fn new(text: &str) -> Self {
        Text { data: text.as_ptr(), length: text.len() }
    }

    /// The text, or an empty one where the other side passed bytes that are not UTF-8.
    ///
    /// # Safety
    /// `data` must point to `length` bytes that stay unchanged for `'a`.
    pub unsafe fn as_str<'a>(self) -> &'a str {
        if self.data.is_null() || self.length == 0 {
            return "";
        }
        // SAFETY: the caller vouches for the bytes.
        let bytes = unsafe { std::slice::from_raw_parts(self.data, self.length) };
        std::str::from_utf8(bytes).unwrap_or("")
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Text({} bytes)", self.length)
    }
}

/// A buffer of the caller's that the callee fills with UTF-8 text, such as the reason of a failure.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct TextBuffer {
    /// First byte.
    pub data: *mut u8,
    /// Room in bytes.
    pub capacity: usize,
    /// Length of the text in bytes. More than `capacity`: only so much of it was written. The caller sets it to 0.
    pub length: usize,
}

impl TextBuffer {
    /// A buffer over `room`.
    pub fn new(room: &mut [u8]) -> Self {
        TextBuffer { data: room.as_mut_ptr(), capacity: room.len(), length: 0 }
    }

    /// Writes as much of `text` as there is room for, cut at a character.
    ///
    /// # Safety
    /// `data` must point to `capacity` writable bytes.
    pub unsafe fn write(&mut self, text: &str) {
        let mut length = text.len().min(self.capacity);
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        if !self.data.is_null() && length > 0 {
            // SAFETY: the caller vouches for the room, and `length` is within it.
            unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), self.data, length) };
        }
        self.length = text.len();
    }
}
