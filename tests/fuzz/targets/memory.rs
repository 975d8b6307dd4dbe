//! The one target that counts what is allocated.
#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

#[path = "../invariants.rs"]
#[allow(dead_code)]
mod invariants;

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(held, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    invariants::memory(input);
    let held = PEAK.load(Relaxed) - before;
    // The input, repeated to a block, is the target's own.
    let own = 2 * input.len() + (256 << 10);
    assert!(
        held <= invariants::MAX_HELD_BYTES + own,
        "{held} bytes held at once"
    );
});
