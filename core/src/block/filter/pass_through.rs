//! A layer that does nothing.
use super::layer::{Filter, FilterQueue};
use crate::block::disk::DiskError;

/// Passes everything on as it comes.
#[derive(Debug)]
pub struct PassThrough;

impl Filter for PassThrough {
    fn open_queue(&self, _index: u32, _depth: u32) -> Result<Box<dyn FilterQueue>, DiskError> {
        Ok(Box::new(PassThrough))
    }
}

impl FilterQueue for PassThrough {}
