//! What came out, for people and for machines.
mod bars;
mod content;
mod html;
mod json;
pub mod page;
pub mod plot;
mod table;
mod text;

pub use bars::histogram;
pub use content::Report;
pub use html::html;
pub use json::json;
pub use table::{align, summary, verdict};
