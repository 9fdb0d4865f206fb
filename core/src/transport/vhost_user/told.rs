//! What a front end and its guest were told of the device's configuration space, and how that outlives this process.
//!
//! A front end such as QEMU reads the space once, and shows its guest that copy from then on, even after it has
//! reconnected to another process, which may have another medium or other settings. Its driver does not read the space
//! again either. So what was told is kept with the record of requests in flight, which the front end holds for us: we
//! may lay out the space behind the queues' regions as we like (vhost-user document, "Inflight I/O tracking": the back
//! end decides on the size of the whole).
use crate::{
    device::{ConfigFields, ToldConfig},
    memory::ForeignMapping,
};
use std::{ops::Range, sync::Arc};

/// Longest configuration space that the document allows (VHOST_USER_MAX_CONFIG_SIZE).
pub(super) const CONFIG_BYTES: usize = 256;
/// A whole configuration space, padded with zeroes.
pub(super) type Space = [u8; CONFIG_BYTES];

/// What was told.
#[derive(Debug)]
pub(super) struct Told {
    fields: ConfigFields,
    /// What the front end was told on this connection, and what its driver has set.
    shown: Space,
    is_shown: [bool; CONFIG_BYTES],
    /// What the driver whose rings run, or ran last, relies on.
    relied: Option<Space>,
    /// It was found in a record: the driver started on an earlier connection.
    is_carried: bool,
    record: Option<Record>,
    /// The driver must be notified that something differs from what it was told.
    notice_due: bool,
}

impl Told {
    /// Nothing was told yet.
    pub(super) fn new(fields: ConfigFields) -> Self {
        Told {
            fields,
            shown: [0; CONFIG_BYTES],
            is_shown: [false; CONFIG_BYTES],
            relied: None,
            is_carried: false,
            record: None,
            notice_due: false,
        }
    }

    /// The front end has handed over an in-flight region. What this connection knows is newer than its contents.
    pub(super) fn adopt(&mut self, mapping: &Arc<ForeignMapping>, queue_bytes: u64) {
        self.record = Record::new(mapping, queue_bytes);
        if self.relied.is_none() {
            self.relied = self.record.as_ref().and_then(Record::load);
            self.is_carried = self.relied.is_some();
        }
        self.save();
    }

    /// What the driver whose rings start was told. `has_moved`: one of them does not start at its beginning.
    /// `is_strange`: nor has that ring run on this connection. `current` is the space as it is.
    pub(super) fn belief(&self, has_moved: bool, is_strange: bool, current: &Space) -> ToldConfig {
        let is_known = self.is_shown.contains(&true);
        match self.relied {
            Some(relied) if has_moved && (self.is_carried || !is_strange) => ToldConfig::Space(relied.into()),
            _ if has_moved => ToldConfig::Unknown,
            // A new driver, which reads what the front end shows.
            relied if is_known => ToldConfig::Space(self.shown_over(relied.unwrap_or(*current)).into()),
            Some(relied) => ToldConfig::Space(relied.into()),
            None => ToldConfig::Nothing,
        }
    }

    /// The driver's rings have started, and it relies on `told`. `current` is the space as it is now.
    pub(super) fn started(&mut self, belief: &ToldConfig, current: &Space) {
        let mut relied = match belief {
            ToldConfig::Nothing => *current,
            ToldConfig::Space(space) => {
                let mut relied = *current;
                relied[..space.len()].copy_from_slice(space);
                relied
            }
            ToldConfig::Unknown => self.shown_over(*current),
        };
        let is_unknown =
            matches!(belief, ToldConfig::Unknown) && !self.is_shown[self.fields.device.clone()].contains(&true);
        self.notice_due |= is_unknown || relied[self.fields.device.clone()] != current[self.fields.device.clone()];
        copy(&mut relied, current, &self.fields.driver);
        self.relied = Some(relied);
        self.save();
    }

    /// The space as this front end is to see it: fields that a driver does not expect to change are as it was told.
    pub(super) fn space(&self, current: &Space) -> Space {
        let Some(mut space) = self.relied else { return *current };
        copy(&mut space, current, &self.fields.device);
        copy(&mut space, current, &self.fields.driver);
        space
    }

    /// The front end has read those bytes of `space`.
    pub(super) fn note_read(&mut self, range: Range<usize>, space: &Space) {
        copy(&mut self.shown, space, &range);
        self.is_shown[range.clone()].fill(true);
        if let Some(relied) = &mut self.relied {
            copy(relied, space, &range);
            self.save();
        }
    }

    /// The driver has written there, and the space is `current` now.
    pub(super) fn note_written(&mut self, offset: usize, data: &[u8], current: &Space) {
        for at in self.fields.driver.clone() {
            if let Some(&byte) = at.checked_sub(offset).and_then(|index| data.get(index)) {
                (self.shown[at], self.is_shown[at]) = (byte, true);
            }
        }
        let driver = self.fields.driver.clone();
        if let Some(relied) = &mut self.relied {
            copy(relied, current, &driver);
            self.save();
        }
    }

    /// Whether the driver must be notified of a change that it has missed.
    pub(super) fn is_notice_due(&self) -> bool {
        self.notice_due
    }

    /// It has been notified.
    pub(super) fn notice_sent(&mut self) {
        self.notice_due = false;
    }

    fn shown_over(&self, mut space: Space) -> Space {
        let shown = self.shown.iter().zip(&self.is_shown);
        space
            .iter_mut()
            .zip(shown)
            .filter(|(_, (_, is_shown))| **is_shown)
            .for_each(|(byte, (shown, _))| *byte = *shown);
        space
    }

    fn save(&self) {
        if let (Some(record), Some(relied)) = (&self.record, &self.relied) {
            record.store(relied);
        }
    }
}

fn copy(target: &mut Space, source: &Space, range: &Range<usize>) {
    target[range.clone()].copy_from_slice(&source[range.clone()]);
}

/// The place in an in-flight region where a space is kept: a mark, and its bytes.
#[derive(Debug)]
struct Record {
    mapping: Arc<ForeignMapping>,
    offset: usize,
}

/// Marks that there is a space, and in which layout.
const MARK: &[u8; 8] = b"PLXTOLD1";
/// Bytes of a record, in whole units of 64.
pub(super) const RECORD_BYTES: u64 = 320;

impl Record {
    /// The record at the end of a region, behind what the queues need. `None`: another back end made the region,
    /// without room for it.
    fn new(mapping: &Arc<ForeignMapping>, queue_bytes: u64) -> Option<Self> {
        let offset = (mapping.len() as u64).checked_sub(RECORD_BYTES)?;
        (offset >= queue_bytes).then(|| Record { mapping: mapping.clone(), offset: offset as usize })
    }

    /// What is kept there. The front end can write to it, too: that affects only itself and its guest.
    fn load(&self) -> Option<Space> {
        let (mut mark, mut space) = ([0; MARK.len()], [0; CONFIG_BYTES]);
        self.mapping.read(self.offset, &mut mark);
        self.mapping.read(self.offset + MARK.len(), &mut space);
        (&mark == MARK).then_some(space)
    }

    /// Keeps a space. If the process is killed meanwhile, there is none.
    fn store(&self, space: &Space) {
        if self.load().as_ref() != Some(space) {
            self.mapping.write(self.offset, &[0; MARK.len()]);
            self.mapping.write(self.offset + MARK.len(), space);
            self.mapping.write(self.offset, MARK);
        }
    }
}
