//! A simulated disk: what was not synchronised may be lost, kept in any part, or torn when the power goes, and there is
//! only so much space.

use redb::StorageBackend;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a disk writes all or nothing, in bytes.
const SECTOR: usize = 512;

/// Numbers from a seed.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % limit
    }
}

#[derive(Debug)]
enum Unsynced {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug)]
struct State {
    /// What survives a power cut for certain.
    durable: Vec<u8>,
    /// What programs read.
    seen: Vec<u8>,
    unsynced: Vec<Unsynced>,
    /// Bytes that the file may have.
    space: usize,
    /// Calls until the power goes; then nothing works until it is back.
    power: Option<usize>,
    /// Calls until one synchronisation fails, leaving nobody knowing what is on the disk.
    sync_fails_in: Option<usize>,
    dice: Dice,
}

/// The disk; clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Disk(Arc<Mutex<State>>);

impl Disk {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            durable: Vec::new(),
            seen: Vec::new(),
            unsynced: Vec::new(),
            space: usize::MAX,
            power: None,
            sync_fails_in: None,
            dice: Dice::new(seed),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power goes after this many calls.
    pub(crate) fn cut_power_in(&self, calls: usize) {
        self.lock().power = Some(calls);
    }

    pub(crate) fn is_dark(&self) -> bool {
        self.lock().power == Some(0)
    }

    /// Some synchronisation after this many calls fails.
    pub(crate) fn fail_sync_in(&self, calls: usize) {
        self.lock().sync_fails_in = Some(calls);
    }

    /// The file may have this many bytes.
    pub(crate) fn give_space(&self, bytes: usize) {
        self.lock().space = bytes;
    }

    pub(crate) fn size(&self) -> usize {
        self.lock().seen.len()
    }

    /// The power is back: what was synchronised is there, of the rest any part.
    pub(crate) fn restore_power(&self) {
        let mut state = self.lock();
        state.power = None;
        state.settle();
    }
}

impl State {
    fn call(&mut self) -> Result<(), io::Error> {
        match &mut self.power {
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Decides what of the unsynchronised changes reached the disk, sector by sector.
    fn settle(&mut self) {
        // Nothing, everything, or each change for itself.
        let all = self.dice.below(3);
        for change in std::mem::take(&mut self.unsynced) {
            let fate = match all {
                0 => 0,
                1 => 2,
                _ => self.dice.below(3),
            };
            match change {
                Unsynced::Length(len) if fate > 0 => self.durable.resize(len, 0),
                Unsynced::Write(at, data) if fate > 0 => {
                    for (index, sector) in data.chunks(SECTOR).enumerate() {
                        if fate == 1 && self.dice.below(2) == 0 {
                            continue;
                        }
                        let from = at + index * SECTOR;
                        let to = from + sector.len();
                        if self.durable.len() < to {
                            self.durable.resize(to, 0);
                        }
                        self.durable[from..to].copy_from_slice(sector);
                    }
                }
                Unsynced::Length(_) | Unsynced::Write(..) => {}
            }
        }
        self.seen = self.durable.clone();
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        let mut state = self.lock();
        state.call()?;
        Ok(state.seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let mut state = self.lock();
        state.call()?;
        let from = usize::try_from(offset).unwrap();
        let bytes = state.seen.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let mut state = self.lock();
        state.call()?;
        let len = usize::try_from(len).unwrap();
        if len > state.space && len > state.seen.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.seen.resize(len, 0);
        state.unsynced.push(Unsynced::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut state = self.lock();
        state.call()?;
        match &mut state.sync_fails_in {
            Some(0) => {
                // As the kernel does: the error is told once, and the pages count as written from then on.
                state.sync_fails_in = None;
                state.settle();
                return Err(io::Error::other("the disk did not take it"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        state.durable = state.seen.clone();
        state.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut state = self.lock();
        state.call()?;
        let from = usize::try_from(offset).unwrap();
        let to = from + data.len();
        if state.seen.len() < to {
            state.seen.resize(to, 0);
        }
        state.seen[from..to].copy_from_slice(data);
        state.unsynced.push(Unsynced::Write(from, data.to_vec()));
        Ok(())
    }
}
