//! The length filter: finds the pairs whose prompts fit, before the run.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use crate::{
    data::Pair,
    judge::{Judge, JudgeError, prompt::Order},
};

/// The pairs that pass the length filter, with statistics of their prompts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LengthFiltered {
    /// Indices of the pairs whose prompts fit in both orders.
    pub(crate) fit: Vec<usize>,
    /// Pairs with a prompt that is too long.
    pub(crate) over_long: usize,
    /// The longest prompt, in tokens.
    pub(crate) longest: usize,
    /// Mean length of the prompts that fit, in tokens.
    pub(crate) mean: f64,
}

/// Measures both orders of every pair, on all threads. `None` if `stop` was raised; `progress` is told
/// the number of pairs done, now and then.
pub(crate) fn length_filter(
    judge: &Judge,
    pairs: &[Pair],
    stop: &AtomicBool,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Option<LengthFiltered>, JudgeError> {
    let threads = judge.language_model.model.device().host().threads();
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let lengths: Mutex<Vec<Option<usize>>> = Mutex::new(vec![None; pairs.len()]);
    let failure: Mutex<Option<(usize, JudgeError)>> = Mutex::new(None);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= pairs.len() || stop.load(Ordering::Relaxed) {
                return;
            }
            let mut longest = 0;
            for order in [Order::ChosenFirst, Order::RejectedFirst] {
                match judge.prompt(&pairs[index], order) {
                    Ok(tokens) => longest = longest.max(tokens.len()),
                    Err(error) => {
                        // The first in the file, whichever thread met one first.
                        let mut failure = failure.lock().expect("no panic under the lock");
                        if failure.as_ref().is_none_or(|(first, _)| index < *first) {
                            *failure = Some((index, error));
                        }
                        next.store(pairs.len(), Ordering::Relaxed);
                        return;
                    }
                }
            }
            lengths.lock().expect("no panic under the lock")[index] = Some(longest);
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Fewer do as well, where the system has no more.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    if let Some((_, error)) = failure.into_inner().expect("no panic under the lock") {
        return Err(error);
    }
    let lengths = lengths.into_inner().expect("no panic under the lock");
    let Some(lengths) = lengths.into_iter().collect::<Option<Vec<usize>>>() else {
        return Ok(None);
    };
    let mut found = LengthFiltered {
        longest: lengths.iter().copied().max().unwrap_or(0),
        ..LengthFiltered::default()
    };
    let mut total = 0;
    for (index, length) in lengths.into_iter().enumerate() {
        if length <= judge.max_prompt_tokens {
            found.fit.push(index);
            total += length;
        } else {
            found.over_long += 1;
        }
    }
    found.mean = total as f64 / found.fit.len().max(1) as f64;
    Ok(Some(found))
}
