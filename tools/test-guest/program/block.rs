//! A virtio block device and what the tests do with it (virtio 1.3, 5.2).
use crate::{
    check,
    failure::fail,
    low::{self, plan, read, report_add, report_set, write},
    mailbox::{plan as p, report as r},
    mmio::Mmio,
    pci::Pci,
    ring::Ring,
};

/// A header of 16 bytes and a status byte per slot, and its data.
const HEADERS: u64 = 0x101_0000;
const STATUSES: u64 = 0x101_8000;
const DATA: u64 = 0x110_0000;
const DATA_STRIDE: u64 = 0x1000;

const READ: u32 = 0;
const WRITE: u32 = 1;
const NO_STATUS: u8 = 0xaa;

pub enum Registers {
    Pci(Pci),
    Mmio(Mmio),
}

pub struct Disk {
    registers: Registers,
    ring: Ring,
    depth: u16,
    bytes: u32,
    interrupts: bool,
    capacity: u64,
}

impl Disk {
    /// Finds the device and starts it.
    pub fn start() -> Disk {
        let ring = Ring::new();
        let registers = match plan(p::TRANSPORT) {
            0 => Registers::Pci(Pci::start(plan(p::DEVICE))),
            _ => Registers::Mmio(Mmio::start(plan(p::DEVICE), plan(p::LINE) as u32)),
        };
        let capacity = match &registers {
            Registers::Pci(pci) => pci.capacity(),
            Registers::Mmio(mmio) => mmio.capacity(),
        };
        report_set(r::CAPACITY, capacity);
        let interrupts = plan(p::INTERRUPTS) != 0;
        ring.want_interrupt(interrupts);
        Disk { registers, ring, depth: plan(p::DEPTH) as u16, bytes: plan(p::BYTES) as u32, interrupts, capacity }
    }

    /// Resets the device.
    pub fn stop(&self) {
        match &self.registers {
            Registers::Pci(pci) => pci.reset(),
            Registers::Mmio(mmio) => mmio.reset(),
        }
    }

    /// Writes a pattern with all requests, then reads it back and compares.
    pub fn verify(&mut self) {
        let requests = plan(p::REQUESTS);
        self.run(requests, WRITE, true);
        self.run(requests, READ, true);
    }

    /// Reads.
    pub fn read_all(&mut self, requests: u64) {
        self.run(requests, READ, false);
    }

    /// One request while its interrupt is masked: it stays pending, and arrives when it is unmasked.
    pub fn masked_request(&mut self) {
        let Registers::Pci(pci) = &self.registers else { fail(line!(), 0) };
        pci.mask(true);
        check!(!pci.is_pending(), 0);
        let before = low::interrupts();
        self.submit(0, 0, READ, false);
        self.publish();
        self.wait_until(|disk| disk.ring.is_ready());
        // The used index moves before the worker signals.
        self.wait_until(|disk| matches!(&disk.registers, Registers::Pci(pci) if pci.is_pending()));
        report_set(r::PENDING, 1);
        check!(low::interrupts() == before, low::interrupts());
        let Registers::Pci(pci) = &self.registers else { fail(line!(), 0) };
        pci.mask(false);
        self.wait_until(|_| low::interrupts() > before);
        check!(self.ring.pop() == Some(0), 0);
    }

    /// One request while the device may not access memory: it is not looked at, and is done when the device may.
    pub fn request_without_bus_master(&mut self) {
        let Registers::Pci(pci) = &self.registers else { fail(line!(), 0) };
        pci.set_bus_master(false);
        let before = low::interrupts();
        self.ring.want_interrupt(true);
        self.submit(0, 0, READ, false);
        self.publish();
        // The rings are stopped, so that no time is long enough; this is some tens of milliseconds.
        let start = low::ticks();
        while low::ticks() - start < 100_000_000 {
            check!(!self.ring.is_ready() && read::<u8>(STATUSES) == NO_STATUS, 0);
            check!(low::interrupts() == before, low::interrupts());
        }
        let Registers::Pci(pci) = &self.registers else { fail(line!(), 0) };
        pci.set_bus_master(true);
        self.wait_until(|disk| disk.ring.is_ready() && low::interrupts() > before);
        check!(self.ring.pop() == Some(0) && read::<u8>(STATUSES) == 0, 0);
    }

    fn run(&mut self, requests: u64, kind: u32, checked: bool) {
        let (mut submitted, mut done) = (0, 0);
        let mut owners = [0u64; 64];
        while done < requests {
            while submitted < requests && submitted - done < self.depth as u64 {
                // Slots are reused in order of completion, so look for one whose request is finished.
                let slot = (0..self.depth).find(|slot| owners[*slot as usize] == 0).unwrap_or_else(|| fail(line!(), 0));
                owners[slot as usize] = submitted + 1;
                self.submit(slot, submitted, kind, checked);
                submitted += 1;
            }
            self.publish();
            self.wait();
            while let Some(slot) = self.ring.pop() {
                check!(slot < self.depth, slot);
                let request = core::mem::replace(&mut owners[slot as usize], 0);
                check!(request != 0, slot);
                self.finish(slot, request - 1, kind, checked);
                done += 1;
            }
        }
    }

    fn submit(&mut self, slot: u16, request: u64, kind: u32, checked: bool) {
        let header = HEADERS + 16 * slot as u64;
        let data = DATA + DATA_STRIDE * slot as u64;
        let status = STATUSES + slot as u64;
        let sectors = self.bytes as u64 / 512;
        write(header, kind);
        write(header + 4, 0u32);
        write(header + 8, request * sectors % (self.capacity / sectors * sectors));
        write(status, NO_STATUS);
        if checked {
            for offset in (0..self.bytes as u64).step_by(8) {
                write(data + offset, if kind == WRITE { pattern(request, offset) } else { 0 });
            }
        }
        self.ring.add(slot, header, data, self.bytes, kind == READ, status);
    }

    fn publish(&mut self) {
        if self.ring.publish() {
            report_add(r::KICKS, 1);
            match &self.registers {
                Registers::Pci(pci) => pci.notify(),
                Registers::Mmio(mmio) => mmio.notify(),
            }
        }
    }

    /// Waits until a request is finished.
    fn wait(&mut self) {
        if !self.interrupts {
            self.ring.want_interrupt(false);
            self.wait_until(|disk| disk.ring.is_ready());
            return;
        }
        let before = low::interrupts();
        self.ring.want_interrupt(true);
        if !self.ring.is_ready() {
            self.wait_until(|_| low::interrupts() > before);
            if let Registers::Mmio(mmio) = &self.registers {
                mmio.acknowledge();
            }
        }
    }

    /// Spins, but not for ever: some ten seconds.
    fn wait_until(&self, condition: impl Fn(&Disk) -> bool) {
        let start = low::ticks();
        while !condition(self) {
            check!(low::ticks() - start < 30_000_000_000, low::interrupts());
            core::hint::spin_loop();
        }
    }

    fn finish(&mut self, slot: u16, request: u64, kind: u32, checked: bool) {
        let status: u8 = read(STATUSES + slot as u64);
        check!(status == 0, status);
        if checked && kind == READ {
            let data = DATA + DATA_STRIDE * slot as u64;
            for offset in (0..self.bytes as u64).step_by(8) {
                let found: u64 = read(data + offset);
                check!(found == pattern(request, offset), found);
            }
        }
        report_add(r::COMPLETED, 1);
    }
}

fn pattern(request: u64, offset: u64) -> u64 {
    (request << 16 | offset).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
