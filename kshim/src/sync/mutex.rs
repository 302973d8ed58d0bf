//! [`Mutex`]: a lock that may be held across anything.
//!
//! C header: `include/linux/mutex.h`

use super::lock::{Guard, Lock, MutexBackend};

/// A lock that may be held while sleeping, so taking it may sleep for long.
///
/// Context: may sleep; `try_lock` is reactor-safe.
///
/// ```
/// use kshim::sync::Mutex;
///
/// let config = Mutex::new(String::from("old"));
/// *config.lock() = "new".into();
/// assert_eq!(config.into_inner(), "new");
/// ```
#[doc(alias = "mutex")]
pub type Mutex<T> = Lock<T, MutexBackend>;

/// Guard of [`Mutex`].
pub type MutexGuard<'a, T> = Guard<'a, T, MutexBackend>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excludes_and_gives_back() {
        let mut m = Mutex::new(vec![1]);
        {
            let mut held = m.lock();
            assert!(m.try_lock().is_none());
            held.do_unlocked(|| m.lock().push(2));
            assert_eq!(*held, [1, 2]);
        }
        m.get_mut().push(3);
        assert_eq!(m.into_inner(), [1, 2, 3]);
    }
}
