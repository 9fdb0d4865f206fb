//! Machine code: entry, interrupts, ports, and accesses of memory that the device sees.
use crate::mailbox::{PLAN, REPORT, plan as p, report as r};
use core::{
    arch::{asm, global_asm},
    ptr::{read_volatile, write_volatile},
};

/// Where the test has put the interrupt descriptor table, empty.
const IDT: u64 = 0x2000;
const LAPIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;
/// The one interrupt vector that is used, and the code segment of level 0.
pub const VECTOR: u32 = 0x40;
const CODE_SEGMENT: u64 = 0x08;
/// Top of the stack at level 3, its segments, and flags: interrupts on, ports open.
const STACK_TOP: u64 = 0x8_0000;

// Entered at level 0 with the tables of the test. It fills in the interrupt gates, switches the local APIC on and
// leaves for level 3. What runs at level 0 may be emulated, so it is simple code.
global_asm!(
    ".globl _start",
    "_start:",
    "mov edi, {idt}",
    "xor ecx, ecx",
    "2:",
    "lea rax, [rip + exceptions]",
    "lea rax, [rax + 8 * rcx]",
    "cmp ecx, 32",
    "jb 3f",
    "lea rax, [rip + interrupt]",
    "3:",
    // The gate: address bits 0 to 15, segment, type, bits 16 to 31, then the rest.
    "mov word ptr [rdi], ax",
    "mov word ptr [rdi + 2], {code}",
    "mov word ptr [rdi + 4], 0x8e00",
    "shr rax, 16",
    "mov word ptr [rdi + 6], ax",
    "mov qword ptr [rdi + 8], 0",
    "add edi, 16",
    "inc ecx",
    "cmp ecx, 256",
    "jb 2b",
    "mov eax, {lapic} + 0xf0",
    "mov dword ptr [rax], 0x1ff",
    "push 0x2b",
    "push {stack}",
    "push 0x3202",
    "push 0x23",
    "lea rax, [rip + guest_main]",
    "push rax",
    "iretq",
    "interrupt:",
    "push rax",
    "inc qword ptr [rip + {count}]",
    "mov eax, {lapic} + 0xb0",
    "mov dword ptr [rax], 0",
    "pop rax",
    "iretq",
    // One stub of eight bytes for each exception. What the processor has pushed is an error code, for some, and the
    // address of the instruction: the report gets both words.
    ".balign 8",
    "exceptions:",
    ".set vector, 0",
    ".rept 32",
    ".balign 8",
    "push vector",
    "jmp exception",
    ".set vector, vector + 1",
    ".endr",
    "exception:",
    "pop rax",
    "add rax, 1000",
    "mov qword ptr [{report} + 8], rax",
    "mov rax, [rsp]",
    "mov qword ptr [{report} + 16], rax",
    "mov rax, [rsp + 8]",
    "mov qword ptr [{report} + 80], rax",
    "mov rax, cr2",
    "mov qword ptr [{report} + 88], rax",
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "4: jmp 4b",
    // Named by libcore's unwind tables; nothing unwinds here.
    ".globl rust_eh_personality",
    "rust_eh_personality:",
    "ud2",
    idt = const IDT,
    code = const CODE_SEGMENT,
    lapic = const LAPIC,
    stack = const STACK_TOP - 8,
    report = const REPORT,
    count = sym INTERRUPT_COUNT,
);

static mut INTERRUPT_COUNT: u64 = 0;

/// Interrupts received so far.
pub fn interrupts() -> u64 {
    unsafe { read_volatile(&raw const INTERRUPT_COUNT) }
}

/// Lets a line of the I/O APIC raise `VECTOR` on its edges.
pub fn open_line(line: u32) {
    for (register, value) in [(0x11 + 2 * line, 0), (0x10 + 2 * line, VECTOR)] {
        write(IOAPIC, register);
        write(IOAPIC + 0x10, value);
    }
}

pub fn read<T: Copy>(address: u64) -> T {
    unsafe { read_volatile(address as *const T) }
}

pub fn write<T: Copy>(address: u64, value: T) {
    unsafe { write_volatile(address as *mut T, value) }
}

/// A word of the plan.
pub fn plan(word: usize) -> u64 {
    read(PLAN + 8 * word as u64)
}

pub fn report_set(word: usize, value: u64) {
    write(REPORT + 8 * word as u64, value);
}

pub fn report_add(word: usize, value: u64) {
    let address = REPORT + 8 * word as u64;
    write(address, read::<u64>(address).wrapping_add(value));
}

/// Tells the test that a phase is over and waits until it says go.
pub fn wait_for_test() {
    report_add(r::PHASE, 1);
    let phase: u64 = read(REPORT + 8 * r::PHASE as u64);
    while plan(p::GO) < phase {
        core::hint::spin_loop();
    }
}

pub fn ticks() -> u64 {
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// A full barrier: orders a store before a later load.
pub fn barrier() {
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

pub fn outb(port: u16, value: u8) {
    unsafe { asm!("out dx, al", in("dx") port, in("al") value) }
}

pub fn inb(port: u16) -> u8 {
    let value;
    unsafe { asm!("in al, dx", in("dx") port, out("al") value) }
    value
}

/// One access of some size: `choice` says which.
pub fn touch(address: u64, choice: u64, value: u64) {
    let value = match choice >> 8 & 3 {
        0 => 0,
        1 => u64::MAX,
        2 => value & 0xff,
        _ => value,
    };
    // Registers are aligned and so are these: an access across two pages would be two.
    match choice % 8 {
        0 => write(address, value as u8),
        1 => write(address & !1, value as u16),
        2 => write(address & !3, value as u32),
        3 => write(address & !7, value),
        4 => drop(read::<u8>(address)),
        5 => drop(read::<u16>(address & !1)),
        6 => drop(read::<u32>(address & !3)),
        _ => drop(read::<u64>(address & !7)),
    }
}

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

// What the compiler calls without being asked.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    unsafe { asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") length => _) }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, length: usize) -> *mut u8 {
    unsafe { asm!("rep stosb", inout("rdi") to => _, in("al") value as u8, inout("rcx") length => _) }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    for index in 0..length {
        let (left, right) = unsafe { (read_volatile(left.add(index)), read_volatile(right.add(index))) };
        if left != right {
            return left as i32 - right as i32;
        }
    }
    0
}
