//! What a test holds of memory: the allocator of the test program counts for each thread.
//!
//! Invariant: what one thread allocates and another frees is in neither count; what is measured stays on its thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Counting;

thread_local! {
    /// Bytes that this thread holds, and the most that it held.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: isize) {
    // A thread that ends frees after its locals are gone.
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        let now = now.wrapping_add(bytes);
        held.set((now, most.max(now)));
    });
}

fn signed(size: usize) -> isize {
    isize::try_from(size).unwrap_or(isize::MAX)
}

// SAFETY: all of it is the system's allocator's, and counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: the caller's promises are the ones that are needed.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Both may exist while it is copied.
        count(signed(new_size));
        count(-signed(layout.size()));
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

/// Runs something on this thread: what it returns, and by how many bytes more than before it held at most.
pub fn most_held<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.with(|held| {
        let (now, _) = held.get();
        held.set((now, now));
        now
    });
    let result = run();
    let (_, most) = HELD.with(Cell::get);
    (result, most.abs_diff(before))
}

#[test]
fn the_most_that_was_held_is_counted_also_when_it_is_freed_again() {
    let (_, held) = most_held(|| {
        let mut bytes = vec![7_u8; 1 << 20];
        drop(std::hint::black_box(vec![0_u8; 4 << 20]));
        bytes.reserve_exact(2 << 20);
    });
    assert!((5 << 20..6 << 20).contains(&held), "{held}");
    let (_, held) = most_held(|| drop(std::hint::black_box(vec![0_u8; 1 << 10])));
    assert!((1 << 10..2 << 10).contains(&held), "{held}");
}
