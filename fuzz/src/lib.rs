//! Hostile input of every kind that Pollux takes, each behind one function of bytes: what a guest, a front end, a user
//! or another process may choose.
//!
//! | module | what the bytes are | what must hold |
//! |---|---|---|
//! | [`rings`] | a driver on a block queue, honest at first, and a late backend | each request ends once, and right |
//! | [`vhost_user`] | a front end's messages and descriptors | the server lives, its neighbour does not notice |
//! | [`registers`] | accesses to the registers of a device on PCI or MMIO | a reset makes the device whole again |
//! | [`configuration`] | a configuration file | it is good, or every message has a place and a way out |
//! | [`kernel`] | a kernel's file and its initrd | it is loaded or refused, in bounded time |
//! | [`statistics`] | a segment of statistics | it is read or refused |
//!
//! `cargo xtask fuzz` runs them under libFuzzer and AddressSanitizer; the programs for it are in `fuzz_targets`, one
//! line each. The inputs in `corpus` are also run by the tests of this package, without either.
#![forbid(unsafe_code)]

pub mod configuration;
mod disk;
mod file;
mod input;
pub mod kernel;
mod pci_slot;
pub mod registers;
pub mod rings;
pub mod statistics;
pub mod vhost_user;
