use std::cell::Cell;
use std::sync::Once;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

/// How many panics this thread has seen since it was first asked. A runtime catches those of its tasks, and a part of
/// Fanfare that lives on after one would hide it.
pub(super) fn count() -> usize {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            COUNT.set(COUNT.get() + 1);
            before(panic);
        }));
    });
    COUNT.get()
}
