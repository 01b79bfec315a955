//! Which pairs a step sees, and in which order their replies are shown.
//!
//! Both are functions of the seed and the step alone: a run that is continued needs to know nothing
//! but its step.

use std::cell::RefCell;

use crate::eval::bootstrap::hash;
use crate::judge::prompt::{Order, OrderPlan};
use crate::train::settings::Orders;

/// Keeps the permutations apart from other draws made of the same numbers.
const PERMUTATION: u64 = 0x7065_726d_7574_6531;

/// One prompt of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Index of the pair.
    pub pair: usize,
    /// The reply in slot A.
    pub order: Order,
    /// The prompt of the same pair in the other order, as an index into the step's prompts.
    pub partner: Option<usize>,
}

/// The order of the data over a run.
#[derive(Debug)]
pub struct Plan {
    pairs: usize,
    pairs_per_step: usize,
    orders: Orders,
    seed: u64,
    /// The permutation of one epoch, kept while the run is in it.
    epoch: RefCell<Option<(u64, Vec<usize>)>>,
}

impl Plan {
    /// For `pairs` pairs and `prompts_per_step` prompts a step; a pair in both orders is two prompts.
    ///
    /// # Panics
    /// If there are no pairs, or the prompts of a step are not whole pairs.
    pub fn new(pairs: usize, prompts_per_step: usize, orders: Orders, seed: u64) -> Plan {
        assert!(pairs > 0 && prompts_per_step > 0, "{prompts_per_step} of {pairs} pairs a step");
        let pairs_per_step = match orders {
            Orders::Both => {
                assert!(prompts_per_step.is_multiple_of(2), "{prompts_per_step} prompts of pairs");
                prompts_per_step / 2
            }
            Orders::Random => prompts_per_step,
        };
        Plan { pairs, pairs_per_step, orders, seed, epoch: RefCell::new(None) }
    }

    /// Steps that see every pair `epochs` times, rounded down but at least one.
    pub fn steps(&self, epochs: f64) -> u64 {
        ((epochs * self.pairs as f64 / self.pairs_per_step as f64) as u64).max(1)
    }

    /// How often the data were seen after `steps` steps.
    pub fn epoch_after(&self, steps: u64) -> f64 {
        steps as f64 * self.pairs_per_step as f64 / self.pairs as f64
    }

    /// The prompts of a step, counted from 0. Both orders of a pair are neighbors.
    pub fn step(&self, step: u64) -> Vec<Slot> {
        let mut slots = Vec::new();
        for index in 0..self.pairs_per_step as u64 {
            let position = step * self.pairs_per_step as u64 + index;
            let pair = self.pair_at(position);
            push_slots(&mut slots, pair, self.orders, self.seed, position);
        }
        slots
    }

    fn pair_at(&self, position: u64) -> usize {
        let (epoch, index) = (position / self.pairs as u64, position % self.pairs as u64);
        let mut kept = self.epoch.borrow_mut();
        let (_, permutation) = match kept.take() {
            Some(known) if known.0 == epoch => kept.insert(known),
            _ => kept.insert((epoch, permutation(self.pairs, self.seed, epoch))),
        };
        permutation[index as usize]
    }
}

/// Adds the prompts of a pair, one or both orders; `position` decides an order that is drawn.
pub fn push_slots(slots: &mut Vec<Slot>, pair: usize, orders: Orders, seed: u64, position: u64) {
    let plan = match orders {
        Orders::Both => OrderPlan::Both,
        Orders::Random => OrderPlan::Random,
    };
    let orders = plan.orders(seed, position, 0);
    let first = slots.len();
    slots.extend(orders.iter().enumerate().map(|(index, &order)| {
        let partner = (orders.len() == 2).then_some(first + 1 - index);
        Slot { pair, order, partner }
    }));
}

/// All indices, in the order of their hashes.
fn permutation(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..len).collect();
    indices.sort_by_cached_key(|&index| (hash(&[PERMUTATION, seed, epoch, index as u64]), index));
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_sees_every_pair_once_in_an_order_of_its_own() {
        let plan = Plan::new(10, 4, Orders::Random, 7);
        let pairs = |steps: std::ops::Range<u64>| -> Vec<usize> {
            steps.flat_map(|step| plan.step(step)).map(|slot| slot.pair).collect()
        };
        let two = pairs(0..5);
        for epoch in two.chunks(10) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(two[..10], two[10..]);
        assert_eq!(pairs(2..4), two[8..16], "a step does not depend on those before it");
        assert_ne!(Plan::new(10, 4, Orders::Random, 8).step(0), plan.step(0));
        assert_eq!((plan.steps(2.0), plan.steps(0.01), plan.epoch_after(5)), (5, 1, 2.0));
    }

    #[test]
    fn both_orders_of_a_pair_are_partners() {
        let plan = Plan::new(3, 4, Orders::Both, 1);
        for step in 0..3 {
            let slots = plan.step(step);
            assert_eq!(slots.len(), 4);
            for (index, slot) in slots.iter().enumerate() {
                let partner = slots[slot.partner.unwrap()];
                assert_eq!((partner.pair, partner.partner), (slot.pair, Some(index)));
                assert_ne!(partner.order, slot.order);
            }
        }
    }

    #[test]
    fn random_orders_are_balanced_and_drawn_anew_each_epoch() {
        let plan = Plan::new(50, 10, Orders::Random, 3);
        let slots: Vec<Slot> = (0..100).flat_map(|step| plan.step(step)).collect();
        let first = slots.iter().filter(|slot| slot.order == Order::ChosenFirst).count();
        // Five standard deviations of 1,000 fair draws.
        assert!((first as f64 - 500.0).abs() < 80.0, "{first}");
        let of_pair_0: Vec<Order> =
            slots.iter().filter(|slot| slot.pair == 0).map(|slot| slot.order).collect();
        assert!(of_pair_0.iter().any(|order| *order != of_pair_0[0]));
    }
}
