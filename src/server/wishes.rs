//! What loaded plans ask of the store beyond what all do: told to it whenever they change, and said where it has no effect.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    plan::{Domain, Plans, Rule, SharedPlans},
    settings::StoreChoice,
    store::redis::checks::Needs,
};

/// What the plans in force ask.
pub struct Wishes {
    plans: Arc<SharedPlans>,
    in_memory: bool,
    needs: watch::Sender<Needs>,
    /// Whether the log has said of `durable` and of `lease` that they have no effect.
    said: [bool; 2],
}

impl Wishes {
    /// Those of the plans as they are now, for a store of that choice.
    pub fn of(plans: &Arc<SharedPlans>, store: &StoreChoice) -> Self {
        let mut wishes = Self {
            plans: plans.clone(),
            in_memory: matches!(store, StoreChoice::Memory),
            needs: watch::Sender::default(),
            said: [false; 2],
        };
        wishes.tell();
        wishes
    }

    /// For the store: as they are, and whenever they change.
    pub fn needs(&self) -> watch::Receiver<Needs> {
        self.needs.subscribe()
    }

    /// Tells of plans that come later, for ever.
    pub async fn follow(mut self) {
        let mut changes = self.plans.changes();
        loop {
            // Some may have come since it was made.
            self.tell();
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn tell(&mut self) {
        let plans = self.plans.load_full();
        let now = Needs::of(&plans);
        self.needs.send_if_modified(|known| {
            let before = std::mem::replace(known, now);
            before != now
        });
        if self.in_memory {
            self.say_idle(now, &plans);
        }
    }

    /// Says what a store that nobody shares has no use for, once until it is gone.
    fn say_idle(&mut self, needs: Needs, plans: &Plans) {
        let mut rules = plans.domains().flat_map(Domain::rules);
        let is_leased =
            |rule: &&Arc<Rule>| rule.allowance.limits().any(|limit| limit.lease.is_some());
        let leased = rules.find(is_leased);
        let said = std::mem::replace(&mut self.said, [needs.replicas > 0, leased.is_some()]);
        if needs.replicas > 0 && !said[0] {
            tracing::warn!(
                "a rule says `durable`, which waits for replicas of Redis: with the memory store it has no effect"
            );
        }
        if let (Some(rule), false) = (leased, said[1]) {
            tracing::info!(domain = %rule.domain, rule = %rule.path, "`lease` has no effect with the memory store");
        }
    }
}
