//! Several at once of what mostly waits: for a store's answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Does `work` on all items, so many at once, and gives the results in the items' order.
pub fn map<T: Send, R: Send>(
    at_once: usize,
    items: Vec<T>,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let count = items.len().min(at_once);
    if count < 2 {
        return items.into_iter().map(work).collect();
    }
    let next = Mutex::new(items.into_iter().enumerate());
    let take = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work_off = || -> Vec<(usize, R)> {
        std::iter::from_fn(take).map(|(place, item)| (place, work(item))).collect()
    };
    let mut results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(work_off)).collect();
        threads
            .into_iter()
            .flat_map(|thread| match thread.join() {
                Ok(results) => results,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    });
    results.sort_by_key(|(place, _)| *place);
    results.into_iter().map(|(_, result)| result).collect()
}

/// As [`map`]; once one has failed, no more are begun.
///
/// # Errors
/// That of the first that has failed, in the items' order.
pub fn try_map<T: Send, R: Send>(
    at_once: usize,
    items: Vec<T>,
    work: impl Fn(T) -> anyhow::Result<R> + Sync,
) -> anyhow::Result<Vec<R>> {
    let has_failed = AtomicBool::new(false);
    let results = map(at_once, items, |item| {
        if has_failed.load(Ordering::Relaxed) {
            return None;
        }
        let result = work(item);
        has_failed.fetch_or(result.is_err(), Ordering::Relaxed);
        Some(result)
    });
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn several_are_done_at_once_and_keep_their_order() {
        const AT_ONCE: usize = 16;
        let all = Barrier::new(AT_ONCE);
        let doubled = map(AT_ONCE, (0..AT_ONCE).collect(), |number| {
            // Nobody gets on before all are here.
            all.wait();
            number * 2
        });
        assert_eq!(doubled, (0..AT_ONCE).map(|number| number * 2).collect::<Vec<_>>());
        assert_eq!(
            map(4, (0..1000).collect(), |number: u32| number),
            (0..1000).collect::<Vec<_>>()
        );
        assert!(map(4, Vec::new(), |()| ()).is_empty());
    }

    #[test]
    fn behind_a_failure_nothing_is_begun() {
        let begun = Mutex::new(Vec::new());
        let result = try_map(1, (0..10).collect(), |number| {
            begun.lock().unwrap().push(number);
            if number == 3 { Err(anyhow::anyhow!("the fourth")) } else { Ok(number) }
        });
        assert_eq!(result.unwrap_err().to_string(), "the fourth");
        assert_eq!(begun.into_inner().unwrap(), [0, 1, 2, 3]);
        assert_eq!(try_map(4, vec![1, 2], Ok).unwrap(), [1, 2]);
    }
}
